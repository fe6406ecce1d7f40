package qrap

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// defaultFD is the socket's descriptor if the user has named none.
const defaultFD = 5

// machine is how a network card is added to a type of machine.
type machine struct {
	prefix      string // of the machine's name
	device      string
	first, last int
	key         string // of the option that has the address
	address     func(i int) string
	bus         string // beside the address; empty: none
}

var machines = []machine{
	{"pc-q35", "virtio-net-pci", 3, 30, "bus", func(i int) string { return fmt.Sprintf("pci.%d", i) }, ""},
	{"pc-", "virtio-net-pci", 2, 30, "addr", func(i int) string { return fmt.Sprintf("0x%x", i) }, "pci.0"},
	{"s390-ccw", "virtio-net-ccw", 1, 15, "devno", func(i int) string { return fmt.Sprintf("fe.0.%x", i) }, ""},
}

// cards are the devices that are removed: the guest is to have the one we add.
var cards = []string{"virtio-net-pci", "virtio-net-ccw", "e1000", "e1000e", "rtl8139"}

// device is the value of an option -device.
type device struct {
	name string
	opts map[string]string
	json bool
}

// parseDevice reads "NAME,KEY=VALUE,..." or a JSON object. What cannot be read has no name.
func parseDevice(s string) device {
	d := device{opts: make(map[string]string), json: strings.HasPrefix(s, "{")}
	if d.json {
		var v map[string]any
		if json.Unmarshal([]byte(s), &v) != nil {
			return d
		}
		for key, value := range v {
			d.opts[key] = fmt.Sprint(value)
		}
		d.name = d.opts["driver"]
		return d
	}
	for i, part := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case i == 0 && !ok:
			d.name = part
		case key == "driver":
			d.name = value
		default:
			d.opts[key] = value
		}
	}
	return d
}

// rewrite returns QEMU's arguments without the network they ask for, and with a card at the socket.
func rewrite(args []string) ([]string, error) {
	m := &machines[0]
	var out []string
	var others []device
	for i := 0; i < len(args); i++ {
		name := strings.TrimPrefix(strings.TrimPrefix(args[i], "-"), "-")
		isOption := strings.HasPrefix(args[i], "-") && i+1 < len(args)
		switch {
		case isOption && (name == "net" || name == "netdev"):
			i++
			continue
		case isOption && name == "device":
			d := parseDevice(args[i+1])
			if slices.Contains(cards, d.name) {
				i++
				continue
			}
			others = append(others, d)
			out = append(out, args[i], args[i+1])
			i++
			continue
		case isOption && (name == "machine" || name == "M"):
			value := strings.TrimPrefix(args[i+1], "type=")
			for j := range machines {
				if strings.HasPrefix(value, machines[j].prefix) {
					m = &machines[j]
					break
				}
			}
		}
		out = append(out, args[i])
	}
	asJSON := slices.ContainsFunc(others, func(d device) bool { return d.json })
	if len(others) > 0 {
		i := m.first
		for ; i <= m.last; i++ {
			if !slices.ContainsFunc(others, func(d device) bool { return m.taken(d, i) }) {
				break
			}
		}
		if i > m.last {
			return nil, fmt.Errorf("no free address for a %s", m.device)
		}
		out = append(out, "-device", m.card(i, asJSON))
	}
	net := fmt.Sprintf("socket,fd=%d,id=hostnet0", defaultFD)
	if asJSON {
		net = fmt.Sprintf(`{"type":"socket","fd":"%d","id":"hostnet0"}`, defaultFD)
	}
	return append(out, "-netdev", net), nil
}

// taken reports whether d has the address number i.
func (m *machine) taken(d device, i int) bool {
	if m.bus != "" && d.opts["bus"] != "" && d.opts["bus"] != m.bus {
		return false
	}
	have := d.opts[m.key]
	if m.key == "addr" {
		have, _, _ = strings.Cut(have, ".") // a function of the device
	}
	return have == m.address(i)
}

// card is the value of the option -device for our card at address number i.
func (m *machine) card(i int, asJSON bool) string {
	opts := [][2]string{}
	switch m.key {
	case "bus":
		opts = append(opts, [2]string{"bus", m.address(i)}, [2]string{"addr", "0x0"})
	case "addr":
		opts = append(opts, [2]string{"bus", m.bus}, [2]string{"addr", m.address(i)})
	default:
		opts = append(opts, [2]string{m.key, m.address(i)})
	}
	opts = append(opts, [2]string{"netdev", "hostnet0"})
	var b strings.Builder
	if asJSON {
		fmt.Fprintf(&b, `{"driver":%q`, m.device)
		for _, o := range opts {
			fmt.Fprintf(&b, `,%q:%q`, o[0], o[1])
		}
		b.WriteString(`,"x-txburst":4096}`)
		return b.String()
	}
	b.WriteString(m.device)
	for _, o := range opts {
		b.WriteString("," + o[0] + "=" + o[1])
	}
	b.WriteString(",x-txburst=4096")
	return b.String()
}
