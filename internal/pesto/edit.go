package pesto

import (
	"slices"
	"sync"

	"fusilli/config"
	"fusilli/internal/process"
)

// mode is what becomes of a specifier.
type mode uint8

const (
	replacing mode = iota // the first one for a table clears it
	adding
	deleting
)

// editor changes tables step by step.
type editor struct {
	tables  []Table
	mode    mode
	cleared map[string]bool // tables that a specifier has cleared

	warn      func(line string)
	ephemeral func() config.PortRange
}

// edit does steps, options of the command line, with a copy of tables. warn is told what the user
// should know if there is no error.
func edit(tables []Table, steps []config.Given, warn func(line string)) (changed []Table, err error) {
	e := editor{tables: slices.Clone(tables), cleared: make(map[string]bool), warn: warn, ephemeral: sync.OnceValue(ephemeral)}
	for i := range e.tables {
		e.tables[i].Rules = slices.Clone(e.tables[i].Rules)
	}
	for _, step := range steps {
		if err := e.do(step); err != nil {
			return nil, err
		}
	}
	return e.tables, nil
}

func (e *editor) do(step config.Given) error {
	switch step.Long {
	case "add":
		e.mode = adding
	case "delete":
		e.mode = deleting
	case "clear":
		t := e.table(step.Value)
		if t == nil {
			return process.Failf("Unsupported pif name %s", step.Value)
		}
		t.Rules = nil
	case "tcp-ports":
		return e.ports(step.Value, config.TCP, config.Inbound)
	case "udp-ports":
		return e.ports(step.Value, config.UDP, config.Inbound)
	case "tcp-ns":
		return e.ports(step.Value, config.TCP, config.Outbound)
	case "udp-ns":
		return e.ports(step.Value, config.UDP, config.Outbound)
	}
	return nil
}

func (e *editor) table(name string) *Table {
	for i := range e.tables {
		if e.tables[i].Name == name {
			return &e.tables[i]
		}
	}
	return nil
}

// ports does what one specifier asks for.
func (e *editor) ports(value string, proto config.Protocol, dir config.Direction) error {
	name := hostName
	if dir == config.Outbound {
		name = spliceName
	}
	t := e.table(name)
	if t == nil && dir == config.Outbound {
		spec := config.PortSpec{Protocol: proto, Direction: dir}
		return process.Failf("Can't use -%s, no outbound interface", spec.Letter())
	}
	if t == nil {
		return process.Failf("Unsupported pif name %s", name)
	}
	kind := config.Passt
	if t.Caps&CapScan != 0 {
		kind = config.Pasta
	}
	spec, err := config.ParsePorts(value, proto, dir, kind)
	if err != nil {
		return err
	}
	env := t.Caps.env()
	if len(spec.Map) == 0 {
		env.Ephemeral = e.ephemeral()
	}
	if e.mode == replacing && !e.cleared[name] {
		t.Rules, e.cleared[name] = nil, true
	}
	var list config.Table
	rules := &list.Inbound
	if dir == config.Outbound {
		rules = &list.Outbound
	}
	if e.mode != deleting {
		*rules = t.Rules
	}
	if err := list.Apply(&spec, env); err != nil {
		return err
	}
	for _, line := range list.Warnings {
		e.warn(line)
	}
	if e.mode != deleting {
		t.Rules = *rules
		return nil
	}
	for _, r := range *rules {
		i := slices.Index(t.Rules, r)
		if i < 0 {
			return process.Failf("No such rule: %s", r)
		}
		t.Rules = slices.Delete(t.Rules, i, i+1)
	}
	return nil
}
