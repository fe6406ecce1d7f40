package pesto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"fusilli/config"
)

// Sizes and values of the format.
const (
	magic      = "basil:s\x00"
	version    = 2
	nameSize   = 128
	ifNameSize = unix.IFNAMSIZ
	greetSize  = len(magic) + 3*4
	tableSize  = nameSize + 2*4 // without its number
	ruleSize   = 3*16 + 3*2 + 2
)

// Flags of a rule.
const (
	flagDual = 1 << iota // the address is that of both families
	flagWeak
	flagScan

	allFlags = flagDual | flagWeak | flagScan
)

// Caps are what the rules of a table may ask for.
type Caps uint32

// The capabilities.
const (
	CapIPv4 Caps = 1 << iota
	CapIPv6
	CapTCP
	CapUDP
	CapScan   // only while a port is bound on the other side
	CapIfName // to listen on one interface
)

// capsOf tells what env allows.
func capsOf(env config.Env) (c Caps) {
	for bit, on := range map[Caps]bool{CapIPv4: env.IPv4, CapIPv6: env.IPv6, CapTCP: env.TCP, CapUDP: env.UDP, CapIfName: env.BindToDevice} {
		if on {
			c |= bit
		}
	}
	return c
}

// env is what c allows.
func (c Caps) env() config.Env {
	return config.Env{
		IPv4: c&CapIPv4 != 0, IPv6: c&CapIPv6 != 0, TCP: c&CapTCP != 0, UDP: c&CapUDP != 0, BindToDevice: c&CapIfName != 0,
	}
}

// Table is a list of rules, with what may be in it.
type Table struct {
	ID    uint8 // not 0
	Name  string
	Caps  Caps
	Rules []config.Rule
}

// Numbers and names of the tables that there are.
const (
	hostID   = 1
	spliceID = 3

	hostName   = "HOST"
	spliceName = "SPLICE"
)

var (
	errMagic = errors.New("this is not a control socket")
	errSizes = errors.New("sizes of names differ from ours")
)

// appendGreeting appends the greeting with tables to b.
func appendGreeting(b []byte, tables []Table) []byte {
	b = append(b, magic...)
	for _, n := range []uint32{version, nameSize, ifNameSize} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	for _, t := range tables {
		b = append(b, t.ID)
		b = appendName(b, t.Name, nameSize)
		b = binary.BigEndian.AppendUint32(b, uint32(t.Caps))
		b = appendRules(b, t.Rules)
	}
	return append(b, 0)
}

// appendUpdate appends the answer that asks for tables to b.
func appendUpdate(b []byte, tables []Table) []byte {
	for _, t := range tables {
		b = appendRules(append(b, t.ID), t.Rules)
	}
	return append(b, 0)
}

func appendRules(b []byte, rules []config.Rule) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(rules)))
	for i := range rules {
		b = appendRule(b, &rules[i])
	}
	return b
}

func appendRule(b []byte, r *config.Rule) []byte {
	flags := byte(0)
	for flag, on := range [...]bool{!r.Listen.IsValid(), r.Weak, r.Scan} {
		if on {
			flags |= 1 << flag
		}
	}
	for _, a := range []netip.Addr{r.Listen, r.Target} {
		if !a.IsValid() {
			a = netip.IPv6Unspecified()
		}
		a16 := a.As16()
		b = append(b, a16[:]...)
	}
	b = appendName(b, r.IfName, ifNameSize)
	for _, port := range []uint16{r.Ports.First, r.Ports.Last, r.To} {
		b = binary.BigEndian.AppendUint16(b, port)
	}
	protocol := byte(unix.IPPROTO_TCP)
	if r.Protocol == config.UDP {
		protocol = unix.IPPROTO_UDP
	}
	return append(b, protocol, flags)
}

// appendName appends name, of less than size bytes, and what fills size.
func appendName(b []byte, name string, size int) []byte {
	return append(append(b, name...), make([]byte, size-len(name))...)
}

// readGreeting reads a greeting.
func readGreeting(r io.Reader) ([]Table, error) {
	var head [greetSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, errMagic
	}
	number := func(i int) uint32 { return binary.BigEndian.Uint32(head[len(magic)+4*i:]) }
	switch {
	case number(0) != version:
		return nil, fmt.Errorf("version %d of the protocol is not known", number(0))
	case number(1) != nameSize || number(2) != ifNameSize:
		return nil, errSizes
	}
	var tables []Table
	for {
		id, err := readID(r)
		if err != nil || id == 0 {
			return tables, err
		}
		if find(tables, id) != nil {
			return nil, fmt.Errorf("table %d comes twice", id)
		}
		var b [tableSize - 4]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, incomplete(err)
		}
		t := Table{ID: id, Caps: Caps(binary.BigEndian.Uint32(b[nameSize:]))}
		var ok bool
		if t.Name, ok = nameIn(b[:nameSize]); !ok || t.Name == "" {
			return nil, fmt.Errorf("invalid name of table %d", id)
		}
		if t.Rules, err = readRules(r, 0); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
}

// readUpdate reads an answer to a greeting with the tables offered and returns those with the rules
// asked for. A table that comes in parts has the rules of all of them. io.EOF means that the client
// asks for nothing.
func readUpdate(r io.Reader, offered []Table) ([]Table, error) {
	tables := make([]Table, len(offered))
	for i, t := range offered {
		tables[i] = Table{ID: t.ID, Name: t.Name, Caps: t.Caps}
	}
	for begun := false; ; begun = true {
		id, err := readID(r)
		if err == io.EOF && begun {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if id == 0 {
			return tables, nil
		}
		t := find(tables, id)
		if t == nil {
			return nil, fmt.Errorf("table %d is not known", id)
		}
		rules, err := readRules(r, len(t.Rules))
		if err != nil {
			return nil, err
		}
		t.Rules = append(t.Rules, rules...)
	}
}

func find(tables []Table, id uint8) *Table {
	for i := range tables {
		if tables[i].ID == id {
			return &tables[i]
		}
	}
	return nil
}

func readID(r io.Reader) (uint8, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// readRules reads how many rules there are, and then them. The table has so many already.
func readRules(r io.Reader, already int) ([]config.Rule, error) {
	var b [ruleSize]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return nil, incomplete(err)
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > uint32(config.MaxRules-already) {
		return nil, fmt.Errorf("%d rules, more than %d", uint64(n)+uint64(already), config.MaxRules)
	}
	rules := make([]config.Rule, n)
	for i := range rules {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, incomplete(err)
		}
		var err error
		if rules[i], err = parseRule(&b); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
	}
	return rules, nil
}

// incomplete is err of what has begun: its end is none.
func incomplete(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseRule reads one rule. Whether it can be had is for config.Table to say.
func parseRule(b *[ruleSize]byte) (config.Rule, error) {
	u16 := func(off int) uint16 { return binary.BigEndian.Uint16(b[off:]) }
	r := config.Rule{Ports: config.PortRange{First: u16(48), Last: u16(50)}, To: u16(52)}
	flags := b[55]
	r.Weak, r.Scan = flags&flagWeak != 0, flags&flagScan != 0
	switch b[54] {
	case unix.IPPROTO_TCP:
	case unix.IPPROTO_UDP:
		r.Protocol = config.UDP
	default:
		return r, fmt.Errorf("protocol %d is not forwarded", b[54])
	}
	if flags&^allFlags != 0 {
		return r, fmt.Errorf("flags %#x are not known", flags)
	}
	if r.Ports.First > r.Ports.Last {
		return r, errors.New("the range of ports has no end")
	}
	listen, target := netip.AddrFrom16([16]byte(b[:16])), netip.AddrFrom16([16]byte(b[16:32])).Unmap()
	switch {
	case flags&flagDual == 0:
		r.Listen = listen.Unmap()
	case listen != netip.IPv6Unspecified():
		return r, errors.New("an address of both families is none of one")
	}
	if !target.IsUnspecified() {
		r.Target = target
	}
	var ok bool
	if r.IfName, ok = nameIn(b[32:48]); !ok || r.IfName == "." || r.IfName == ".." || strings.Contains(r.IfName, "/") {
		return r, errors.New("invalid interface name")
	}
	return r, nil
}

// nameIn returns the name in b, up to the first NUL, which there must be. It has no blanks and
// nothing that a terminal acts on.
func nameIn(b []byte) (string, bool) {
	n := bytes.IndexByte(b, 0)
	if n < 0 {
		return "", false
	}
	for _, c := range b[:n] {
		if c <= ' ' || c >= 0x7f {
			return "", false
		}
	}
	return string(b[:n]), true
}
