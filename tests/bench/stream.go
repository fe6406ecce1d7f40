package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"fusilli/tapio/frame"
	"fusilli/tests/bed"
)

// streamCases are passt alone, with a client that does what a hypervisor does: frames of one TCP
// connection out of the guest, each written by itself, at a given rate or as fast as they are
// taken. Without an emulated guest beside it, the CPU time is known with little noise.
func streamCases(d time.Duration) []benchCase {
	var list []benchCase
	for _, c := range []struct {
		mtu  int
		gbps float64 // 0: no limit
	}{{65520, 1}, {65520, 0}, {1500, 0.4}, {1500, 0}} {
		name := fmt.Sprintf("stream-%d", c.mtu)
		if c.gbps == 0 {
			name += "-full"
		}
		list = append(list, benchCase{name: name, mtu: c.mtu, alone: func(ctx context.Context, im impl, b *bed.Bed, self string) ([]figure, error) {
			return stream(ctx, im, b, self, c.mtu, c.gbps, d)
		}})
	}
	return list
}

// stream measures one transfer.
func stream(ctx context.Context, im impl, b *bed.Bed, self string, mtu int, gbps float64, d time.Duration) ([]figure, error) {
	proc, socket, stop, err := im.startPasst(ctx, b, mtu)
	if err != nil {
		return nil, err
	}
	defer stop()
	far, err := generate(b.Far, self, "tcp-server", ":"+port)
	if err != nil {
		return nil, err
	}
	defer far.stop()
	var conn net.Conn
	err = bed.Wait(ctx, "passt to listen", func() (ok bool, err error) {
		conn, err = net.Dial("unix", socket)
		return err == nil, nil
	})
	if err != nil {
		return nil, err
	}
	c := newSender(conn, mtu, gbps)
	defer c.stop()
	if err := c.connect(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, proc.Stderr())
	}
	s := &session{bed: b, proc: proc, self: self}
	time.Sleep(200 * time.Millisecond) // windows grow
	figures, err := s.rate(far, d)
	if err == nil {
		err = c.failure()
	}
	return figures, err
}

// sender is a guest with one TCP connection that sends for ever, and its hypervisor.
type sender struct {
	conn net.Conn
	step time.Duration // from frame to frame
	b    []byte        // a frame of data, with its length before it
	mss  int
	wg   sync.WaitGroup

	mu       sync.Mutex
	change   *sync.Cond
	una, nxt uint32
	edge     uint32 // first sequence number that may not be sent
	ack      uint32
	scale    uint8
	dups     int
	open     bool
	err      error
}

const guestPort = 40000

func newSender(conn net.Conn, mtu int, gbps float64) *sender {
	c := &sender{conn: conn, mss: mtu - frame.IPv4Len - frame.TCPLen, una: 1000, nxt: 1000}
	c.change = sync.NewCond(&c.mu)
	if gbps > 0 {
		c.step = time.Duration(float64(c.mss) * 8 / gbps)
	}
	c.b = make([]byte, 4+frame.EthLen+mtu)
	return c
}

// put lays out a segment with n bytes of payload and the options opt in b and returns all of it.
func (c *sender) put(b []byte, seq, ack uint32, flags uint8, opt []byte, n int) []byte {
	tcp := frame.TCPLen + len(opt)
	binary.BigEndian.PutUint32(b, uint32(frame.EthLen+frame.IPv4Len+tcp+n))
	copy(b[4:], []byte{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 0x52, 0x54, 0, 0, 0, 1, 8, 0})
	at := 4 + frame.EthLen
	ip := frame.IP{Proto: frame.ProtoTCP, TTL: 64, DF: true, Len: tcp + n,
		Src: frame.AddrOf(netip.MustParseAddr(bed.HostAddr4)), Dst: frame.AddrOf(netip.MustParseAddr(bed.FarAddr4))}
	at += frame.PutIP(b[at:], &ip)
	t := b[at:]
	binary.BigEndian.PutUint16(t, guestPort)
	binary.BigEndian.PutUint16(t[2:], 7000)
	binary.BigEndian.PutUint32(t[4:], seq)
	binary.BigEndian.PutUint32(t[8:], ack)
	t[12], t[13] = uint8(tcp/4<<4), flags
	binary.BigEndian.PutUint16(t[14:], 0xffff)
	copy(t[frame.TCPLen:], opt)
	return b[:at+tcp+n]
}

// connect opens the connection, says that the server is to discard what comes, and starts to send.
func (c *sender) connect() error {
	syn := []byte{2, 4, byte(c.mss >> 8), byte(c.mss), 1, 3, 3, 7}
	c.wg.Go(c.receive)
	defer time.AfterFunc(10*time.Second, func() { c.fail(errors.New("no connection")) }).Stop()
	small := make([]byte, 100)
	if _, err := c.conn.Write(c.put(small, c.nxt, 0, frame.SYN, syn, 0)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.open && c.err == nil {
		c.change.Wait()
	}
	if c.err != nil {
		return c.err
	}
	first := c.put(small, c.nxt, c.ack, frame.ACK|frame.PSH, nil, 1)
	first[len(first)-1] = sinkByte
	c.nxt++
	if _, err := c.conn.Write(first); err != nil {
		return err
	}
	c.wg.Go(c.send)
	c.wg.Go(c.repeat)
	return nil
}

// send sends until the connection to the translator ends.
func (c *sender) send() {
	due := time.Now()
	for {
		c.mu.Lock()
		for c.err == nil && int32(c.edge-c.nxt) < int32(c.mss) {
			if int32(c.edge-c.nxt) > 0 && c.una == c.nxt {
				break // less than a segment is all there is room for
			}
			c.change.Wait()
		}
		if c.err != nil {
			c.mu.Unlock()
			return
		}
		n := min(c.mss, int(c.edge-c.nxt))
		b := c.put(c.b, c.nxt, c.ack, frame.ACK, nil, n)
		c.nxt += uint32(n)
		c.mu.Unlock()
		if c.step > 0 {
			now := time.Now()
			if due = due.Add(c.step); due.Before(now.Add(-10 * c.step)) {
				due = now
			}
			for time.Now().Before(due) { // as an emulated guest does
			}
		}
		if _, err := c.conn.Write(b); err != nil {
			c.fail(err)
			return
		}
	}
}

// repeat sends again what was not acknowledged for a while.
func (c *sender) repeat() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for last := c.una - 1; c.err == nil; last = c.una {
		if c.una == last && c.una != c.nxt {
			c.nxt = c.una
			c.change.Broadcast()
		}
		c.mu.Unlock()
		<-tick.C
		c.mu.Lock()
	}
}

// receive takes acknowledgements.
func (c *sender) receive() {
	in := bufio.NewReaderSize(c.conn, 1<<20)
	var length [4]byte
	b := make([]byte, 65536)
	for {
		if _, err := io.ReadFull(in, length[:]); err != nil {
			c.fail(err)
			return
		}
		f := b[:min(binary.BigEndian.Uint32(length[:]), 65535)]
		if _, err := io.ReadFull(in, f); err != nil {
			c.fail(err)
			return
		}
		if len(f) < frame.EthLen+frame.IPv4Len+frame.TCPLen || f[12] != 8 || f[13] != 0 || f[23] != frame.ProtoTCP {
			continue
		}
		if err := c.segment(f[frame.EthLen+frame.IPv4Len:]); err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *sender) segment(t []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	seq, ack, wnd := binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:]), uint32(binary.BigEndian.Uint16(t[14:]))
	switch {
	case t[13]&frame.RST != 0:
		return errors.New("connection reset")
	case t[13]&frame.SYN != 0:
		for o := t[frame.TCPLen : t[12]>>4*4]; len(o) > 1; {
			if o[0] == 1 {
				o = o[1:]
				continue
			}
			if o[0] == 3 && len(o) > 2 {
				c.scale = o[2]
			}
			o = o[min(max(int(o[1]), 2), len(o)):]
		}
		c.open = true
		c.ack, c.una, c.nxt = seq+1, ack, ack
		c.edge = ack + wnd
		c.change.Broadcast()
		return nil
	}
	edge := ack + wnd<<c.scale
	switch {
	case int32(ack-c.una) > 0:
		c.una, c.dups = ack, 0
	case ack == c.una && edge == c.edge && ack != c.nxt:
		if c.dups++; c.dups == 3 {
			c.nxt = ack // something was dropped: once more
		}
	}
	c.edge = edge
	c.change.Broadcast()
	return nil
}

func (c *sender) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.change.Broadcast()
}

func (c *sender) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *sender) stop() {
	c.fail(net.ErrClosed)
	c.conn.Close()
	c.wg.Wait()
}
