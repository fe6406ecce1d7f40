package main

import (
	"fmt"
	"time"

	"fusilli/tests/bed"
)

// forwarding has the program forward the servers' ports: into the target, and out of its loopback.
var forwarding = []string{"-t", port, "-u", port, "-T", outPort, "-U", outPort}

// forwarded is the cases of forwarded ports: splice-in from host's loopback into the target,
// splice-out from the target's loopback to host, and forward from far into the target by the tap.
func forwarded() []benchCase {
	var list []benchCase
	add := func(name string, local bool, measure func(*session, time.Duration) ([]figure, error)) {
		list = append(list, benchCase{name: name, mtu: defaultMTU, opts: forwarding, local: local, connected: measure})
	}
	for _, path := range []path{spliceIn, spliceOut, forwardIn} {
		local := path != forwardIn
		for _, streams := range []int{1, 4} {
			name := string(path)
			if streams > 1 {
				name += fmt.Sprintf("-x%d", streams)
			}
			add(name, local, path.bulk(fmt.Sprint(streams)))
		}
		add(string(path)+"-rr", local, path.transactions("tcp-server", "tcp-rr"))
		add(string(path)+"-crr", local, path.transactions("tcp-server", "tcp-crr"))
		add(string(path)+"-udp-rr", local, path.transactions("udp-echo", "udp-rr"))
		add(string(path)+"-udp", local, path.udp)
	}
	return list
}

// path is a way that forwarded traffic takes.
type path string

const (
	spliceIn  path = "splice-in"
	spliceOut path = "splice-out"
	forwardIn path = "forward-in"
)

// ends starts a server, and a client that reaches it by the path. With plain loopback both are in
// host.
func (p path) ends(s *session, server, client string, more ...string) (srv, cli *traffic, err error) {
	there, here, addr, at := s.bed.Host, s.bed.Host, "127.0.0.1", port
	if s.target != nil {
		switch p {
		case spliceIn:
			there = s.target.NS
		case spliceOut:
			here, at = s.target.NS, outPort
		case forwardIn:
			there, here, addr = s.target.NS, s.bed.Far, bed.HostAddr4
		}
	}
	return s.between(there, []string{server, ":" + at}, here, append([]string{client, addr + ":" + at}, more...))
}

func (p path) bulk(streams string) func(*session, time.Duration) ([]figure, error) {
	return func(s *session, d time.Duration) ([]figure, error) {
		srv, cli, err := p.ends(s, "tcp-server", "tcp-send", streams)
		if err != nil {
			return nil, err
		}
		defer srv.stop()
		defer cli.stop()
		return s.rate(srv, d)
	}
}

func (p path) udp(s *session, d time.Duration) ([]figure, error) {
	srv, cli, err := p.ends(s, "udp-sink", "udp-send", fmt.Sprint(udpSize))
	if err != nil {
		return nil, err
	}
	defer srv.stop()
	defer cli.stop()
	return s.rate(srv, d)
}

func (p path) transactions(server, client string) func(*session, time.Duration) ([]figure, error) {
	return func(s *session, d time.Duration) ([]figure, error) {
		srv, cli, err := p.ends(s, server, client)
		if err != nil {
			return nil, err
		}
		defer srv.stop()
		defer cli.stop()
		return s.latency(cli, d)
	}
}
