package forward

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"fusilli/config"
)

// Failure is a row of ports, mostly of one, that could not be listened on for the same reason.
type Failure struct {
	Side   Side
	Rule   config.Rule
	Ports  config.PortRange
	Device bool // the interface could not be bound to
	Err    error
}

// Error is a text that other programs match.
func (f *Failure) Error() string {
	if f.Device {
		return fmt.Sprintf("SO_BINDTODEVICE %s failed for %s on %s: %s", f.Rule.IfName, f.Rule.Protocol,
			f.on(f.Ports), reason(f.Err))
	}
	return fmt.Sprintf("Listen failed for %s %s port %s: %s", f.Side, f.Rule.Protocol, f.on(f.Ports), reason(f.Err))
}

func (f *Failure) Unwrap() error { return f.Err }

// on is what is listened on: address, interface and ports.
func (f *Failure) on(ports config.PortRange) string {
	return listenText(&f.Rule) + "/" + ports.String()
}

func listenText(r *config.Rule) string {
	text := "*"
	if r.Listen.IsValid() {
		text = r.Listen.String()
	}
	if r.IfName != "" {
		text += "%" + r.IfName
	}
	return text
}

// add notes that port of a rule failed, after all ports before it.
func add(list []Failure, f Failure) []Failure {
	if n := len(list); n > 0 {
		last := &list[n-1]
		if last.Rule == f.Rule && last.Side == f.Side && last.Device == f.Device && last.Err == f.Err && last.Ports.Last+1 == f.Ports.First {
			last.Ports.Last = f.Ports.Last
			return list
		}
	}
	return append(list, f)
}

// known reports whether all ports of f failed for the same reason before.
func (f *Failure) known(before map[uint16]error) bool {
	for p := int(f.Ports.First); p <= int(f.Ports.Last); p++ {
		if before[uint16(p)] != f.Err {
			return false
		}
	}
	return true
}

// fatalText is an error whose text belongs to the command line's interface.
type fatalText string

func (e fatalText) Error() string { return string(e) }

const errListen = fatalText("Couldn't listen on requested ports")

func errAll(s Side, r *config.Rule) error {
	return fatalText(fmt.Sprintf("All listens failed for %s %s %s/%d-%d", s, r.Protocol, listenText(r), r.Ports.First, r.Ports.Last))
}

// reason is err as the C library words it: users and programs know these texts.
func reason(err error) string {
	e, ok := err.(unix.Errno)
	if !ok {
		return err.Error()
	}
	if text, ok := clib[e]; ok {
		return text
	}
	text := e.Error()
	return string(text[0]-'a'+'A') + text[1:]
}

// clib has the texts that differ from Go's by more than the first letter.
var clib = map[unix.Errno]string{unix.EADDRNOTAVAIL: "Cannot assign requested address"}

// exhausted reports whether err would be that of the next port as well.
func exhausted(err error) bool {
	return err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOBUFS || err == unix.ENOMEM
}

// describe is one end of a flow, as messages show it.
func describe(a netip.AddrPort) string { return fmt.Sprintf("[%s]:%d", a.Addr(), a.Port()) }
