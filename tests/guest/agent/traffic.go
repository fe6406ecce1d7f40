//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"fusilli/tests/guest/wire"
)

// datagram is the payload of one UDP datagram of a transfer. The last one is shorter; an empty one
// follows.
const datagram = 1200

// traffic is what the agent does by other names.
//
//	send NETWORK ADDR NUMBER BYTES    send the beginning of stream NUMBER
//	sink NETWORK ADDR                 receive once, print the digest and the number of bytes
//	echo NETWORK ADDR                 send back what comes, for ever
//	blast ADDR SECONDS                send for a time, print bytes and seconds
//	suck ADDR SECONDS                 receive for a time, print bytes and seconds
//	flood ADDR SIZE SECONDS           send datagrams for a time, print their number
//	ring SECONDS                      drive the card's transmit queue, see ring.go
//	rr NETWORK ADDR SECONDS           exchange single bytes, print the number and the median in ns
//	crr ADDR SECONDS                  the same with a connection for each
//
// Servers print "listening" when they do. The first byte of blast, suck, rr and crr tells the
// server what is expected: s to take, g to send, e to echo.
func traffic(name string, args []string) error {
	want := map[string]int{"send": 4, "sink": 2, "echo": 2, "blast": 2, "suck": 2, "flood": 3, "ring": 1, "rr": 3, "crr": 2}
	if n, ok := want[name]; !ok || len(args) != n {
		return fmt.Errorf("agent: %q with %d arguments", name, len(args))
	}
	switch name {
	case "send":
		number, err := strconv.ParseUint(args[2], 10, 64)
		n, err2 := strconv.ParseInt(args[3], 10, 64)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		return send(args[0], args[1], number, n)
	case "sink":
		return sink(args[0], args[1])
	case "echo":
		return echo(args[0], args[1])
	case "blast", "suck":
		return bulk(name, args[0], args[1])
	case "flood":
		return flood(args[0], args[1], args[2])
	case "ring":
		return ring(args[0])
	case "rr":
		return rr(args[0], args[1], args[2], false)
	}
	return rr("tcp", args[0], args[1], true)
}

func send(network, addr string, number uint64, n int64) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	src := io.LimitReader(wire.Stream(number), n)
	if network == "tcp" {
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, src, make([]byte, 64<<10)); err != nil {
			return err
		}
		// The other side's end says that all has arrived.
		c.(*net.TCPConn).CloseWrite()
		_, err = io.Copy(io.Discard, c)
		return err
	}
	b := make([]byte, datagram)
	for {
		k, err := io.ReadFull(src, b)
		if k > 0 || err != nil {
			if _, err := c.Write(b[:k]); err != nil {
				return err
			}
		}
		if k > 0 { // nobody paces datagrams for us but the one who has got this
			if _, err := c.Read(make([]byte, 1)); err != nil {
				return err
			}
		}
		if err != nil && k == 0 {
			return nil
		}
		if err != nil {
			_, err = c.Write(nil)
			return err
		}
	}
}

func sink(network, addr string) error {
	d := wire.NewDigest()
	var n int64
	if network == "udp" {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		fmt.Println("listening")
		b := make([]byte, 65536)
		for {
			k, from, err := c.ReadFrom(b)
			if err != nil {
				return err
			}
			if k == 0 {
				break
			}
			c.WriteTo([]byte{1}, from) // for the next one
			d.Write(b[:k])
			n += int64(k)
		}
	} else {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		fmt.Println("listening")
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if n, err = io.Copy(d, c); err != nil {
			return err
		}
		c.Close()
	}
	fmt.Println(d, n)
	return nil
}

func echo(network, addr string) error {
	if network == "udp" {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		fmt.Println("listening")
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return err
			}
			c.WriteTo(b[:n], from)
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 64<<10))
		}()
	}
}

func bulk(name, addr, seconds string) error {
	s, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	first, move := byte('s'), c.Write
	if name == "suck" {
		first, move = 'g', c.Read
	}
	if _, err := c.Write([]byte{first}); err != nil {
		return err
	}
	b, n := make([]byte, 256<<10), 0
	start := time.Now()
	c.SetDeadline(start.Add(time.Duration(s * float64(time.Second))))
	for {
		k, err := move(b)
		n += k
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
	}
	fmt.Println(n, time.Since(start).Seconds())
	return nil
}

// flood sends as fast as the link takes it.
func flood(addr, size, seconds string) error {
	n, err := strconv.Atoi(size)
	s, err2 := strconv.ParseFloat(seconds, 64)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Duration(s * float64(time.Second))))
	for b, sent := make([]byte, n), 0; ; sent++ {
		if _, err := c.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
			fmt.Println(sent)
			return nil
		} else if err != nil {
			return err
		}
	}
}

func rr(network, addr, seconds string, connect bool) error {
	s, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return err
	}
	var c net.Conn
	var times []time.Duration
	b := []byte{'e'}
	for end := time.Now().Add(time.Duration(s * float64(time.Second))); ; {
		start := time.Now()
		if start.After(end) {
			break
		}
		if c == nil {
			if c, err = net.Dial(network, addr); err != nil {
				return err
			}
		}
		c.SetDeadline(start.Add(5 * time.Second))
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		if connect {
			c.Close()
			c = nil
		}
		times = append(times, time.Since(start))
	}
	if len(times) == 0 {
		return os.ErrDeadlineExceeded
	}
	slices.Sort(times)
	fmt.Println(len(times), times[len(times)/2].Nanoseconds())
	return nil
}
