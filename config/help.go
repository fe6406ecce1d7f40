package config

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// group is a section of the help text. Each fits on a screen of 24 lines.
type group uint8

const (
	general group = iota
	logging
	namespace
	machine
	link
	naming
	services
	forwarding
	mapping
	limits
	groups
)

func (g group) String() string {
	return [...]string{
		general:    "General",
		logging:    "Messages and traces",
		namespace:  "Namespaces",
		machine:    "Virtual machines",
		link:       "The guest's link",
		naming:     "Names and resolvers",
		services:   "Protocols and services",
		forwarding: "Forwarded ports",
		mapping:    "The host's side",
		limits:     "Limits (of this program only)",
	}[g]
}

const portsHelp = `forward these TCP ports to the guest
may be given several times; SPEC is none, or [ADDR][%IF]/ and a list of
  PORTS, PORTS:PORTS, PORTS:ADDR/PORTS   e.g. 22, 22-80:32-90
  ~PORTS to leave out, all for all that are not ephemeral`

// portsHelpOf has what differs by mode in the help of --tcp-ports.
func portsHelpOf(mode Mode) string {
	if mode == Pasta {
		return `
  auto for those that are bound in the namespace, again and again
Examples:
  -t 8080:80             port 80 of the namespace as 8080
  -t 192.0.2.1%eth0/22   on one address and one interface
  -t 2000-5000,~3000     a range with a hole
  -t auto,~25            all that are bound in the namespace but 25
  -t 8000-8010,auto      those, while they are bound there
default: auto`
	}
	return `
Examples:
  -t 8080:80             port 80 of the guest as 8080
  -t 192.0.2.1%eth0/22   on one address and one interface
  -t 2000-5000,~3000     a range with a hole
  -t ~25                 all but 25
default: none`
}

// Help writes the help text of mode. argv0 is the name the program was called by. The error is
// that of w.
func Help(w io.Writer, mode Mode, argv0 string) error {
	var b bytes.Buffer
	if mode == Pasta {
		fmt.Fprintf(&b, "Usage: %s [OPTION]... [COMMAND] [ARGS]...\n", argv0)
		fmt.Fprintf(&b, "       %s [OPTION]... PID\n", argv0)
		fmt.Fprintf(&b, "       %s [OPTION]... --netns [PATH|NAME]\n\n", argv0)
		b.WriteString("Connect a network namespace to the host's network. Without PID and --netns,\n" +
			"make a new one and run COMMAND, or a login shell, in it.\n")
	} else {
		fmt.Fprintf(&b, "Usage: %s [OPTION]...\n\nConnect a virtual machine to the host's network.\n", argv0)
	}
	for g := range groups {
		helpGroup(&b, g, mode)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// helpGroup writes the options of g, if mode has any.
func helpGroup(b *bytes.Buffer, g group, mode Mode) {
	heading := fmt.Sprintf("\n%s:\n", g)
	for i := range options {
		o := &options[i]
		shown := o.only
		if o.shown != everywhere {
			shown = o.shown
		}
		if o.group != g || o.help == "" || !shown.includes(mode, mode == Passt) {
			continue
		}
		b.WriteString(heading)
		heading = ""
		text := o.help
		if o.long == "tcp-ports" {
			text += portsHelpOf(mode)
		}
		head := "      --" + o.long
		if o.short != "" {
			head = "  -" + o.short + ", --" + o.long
		}
		if o.arg != "" {
			head += " " + o.arg
		}
		first, more, _ := strings.Cut(text, "\n")
		fmt.Fprintf(b, "%s\t%s\n", head, first)
		if more != "" {
			b.WriteString("    " + strings.ReplaceAll(more, "\n", "\n    ") + "\n")
		}
	}
}

// Version writes what --version shows. Callers parse the first line: the command's name, a
// blank and version. The error is that of w.
func Version(w io.Writer, mode Mode, version string) error {
	return ProgramVersion(w, mode.String(), version)
}

// ProgramVersion is Version for a program of ours that has no mode.
func ProgramVersion(w io.Writer, name, version string) error {
	_, err := fmt.Fprintf(w, `%s %s
Copyright the authors of fusilli
Apache License, Version 2.0
  <https://www.apache.org/licenses/LICENSE-2.0>
You may use, change and pass on this software under the terms of that licence.
It comes without any warranty, as far as the law permits.

`, name, version)
	return err
}

// Capabilities writes what --print-capabilities shows: one JSON object, as those who manage
// back-ends of vhost-user devices read it from standard output. The error is that of w.
func Capabilities(w io.Writer) error {
	_, err := io.WriteString(w, "{\n  \"type\": \"net\"\n}\n")
	return err
}
