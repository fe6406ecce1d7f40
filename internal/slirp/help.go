package slirp

import (
	"bytes"
	"fmt"
	"io"
)

// configVersion is what Version announces: 2 stands for outbound addresses, 3 for --disable-dns.
const configVersion = 4

// Help writes the help text. The error is that of w.
func Help(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("Usage: slirp4netns [OPTION]... PID|PATH [TAPNAME]\n" +
		"Connect a network namespace to the host's network, without privileges.\n\n")
	for _, o := range table {
		head := "--" + o.long
		if o.arg != "" {
			head += "=" + o.arg
		}
		if o.short != 0 {
			head = "-" + string(o.short) + ", " + head
		}
		fmt.Fprintf(&b, "%-24s %s\n", head, o.help)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Version writes what --version shows: lines of which programs parse the first and the one with
// SLIRP_CONFIG_VERSION_MAX. version is that of the program. The error is that of w.
func Version(w io.Writer, version string) error {
	_, err := fmt.Fprintf(w, "slirp4netns version 1.2.0\nfusilli: %s\nSLIRP_CONFIG_VERSION_MAX: %d\n", version, configVersion)
	return err
}
