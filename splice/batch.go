package splice

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"fusilli/actors/sock"
)

const (
	maxBatch    = 32       // messages received in one call
	maxDatagram = 64 << 10 // bytes a message has room for
	// bulkDatagrams is what a receive buffer that was full is set to. The kernel takes no more than
	// net.core.rmem_max.
	bulkDatagrams = 4 << 20
)

// batch is datagrams on their way from one socket to the other. A flow has one only while it moves
// something.
type batch struct {
	in      [maxBatch]sock.Message
	control [maxBatch]sock.RowControl
	iov     [maxBatch]unix.Iovec

	// What is sent: rows, of one or more of the received messages.
	out     [maxBatch]sock.Message
	size    [maxBatch]int // of a row's datagrams; 0: a single one
	sendCtl [maxBatch]sock.RowControl

	buf *[maxBatch][maxDatagram]byte // real only where it was used
}

var batches = sync.Pool{New: func() any {
	b := &batch{buf: new([maxBatch][maxDatagram]byte)}
	for i := range b.in {
		h := &b.in[i].Hdr
		b.iov[i].Base = &b.buf[i][0]
		h.Iov = &b.iov[i]
		h.SetIovlen(1)
		h.Control = &b.control[i][0]
	}
	return b
}}

// receive takes what waits at fd and returns the number of messages.
func (b *batch) receive(fd int) (int, unix.Errno) {
	for i := range b.in {
		b.iov[i].SetLen(maxDatagram)
		b.in[i].Hdr.SetControllen(len(b.control[i]))
	}
	return sock.ReceiveBatch(fd, b.in[:])
}

// rows makes rows of the first n messages received, whose datagrams are shorter than limit, and
// returns how many, and how many bytes there are in all.
func (b *batch) rows(n, limit int) (rows, total int) {
	var (
		bytes, count int  // of the last row
		closed       bool // its last datagram is shorter
	)
	for i := range n {
		m := &b.in[i]
		length := int(m.Len)
		b.iov[i].SetLen(length)
		total += length
		if size := b.control[i].Size(int(m.Hdr.Controllen)); size > 0 && size < length {
			b.begin(rows, i, size)
			rows++
			closed = true // it is complete
			continue
		}
		if last := rows - 1; last >= 0 && !closed && length > 0 && length <= b.size[last] && b.size[last] < limit &&
			count < sock.MaxSegments && bytes+length <= sock.MaxRow {
			h := &b.out[last].Hdr
			h.SetIovlen(int(h.Iovlen) + 1) // the next one lies behind
			bytes, count = bytes+length, count+1
			closed = length < b.size[last]
			continue
		}
		b.begin(rows, i, length)
		rows++
		bytes, count, closed = length, 1, length == 0
	}
	for i := range rows {
		h := &b.out[i].Hdr
		h.Control = nil
		h.SetControllen(0)
		if h.Iovlen > 1 || int(h.Iov.Len) > b.size[i] {
			b.sendCtl[i].Attach(h, b.size[i])
		} else {
			b.size[i] = 0
		}
	}
	return rows, total
}

// begin starts row number row of datagrams of size bytes with message i.
func (b *batch) begin(row, i, size int) {
	h := &b.out[row].Hdr
	h.Iov = &b.iov[i]
	h.SetIovlen(1)
	b.size[row] = size
}

// send sends rows from i to n and returns how many, at least one if there is no error.
func (b *batch) send(fd, i, n int) (int, unix.Errno) {
	h := &b.out[i].Hdr
	if i+1 < n || h.Control != nil || h.Iovlen > 1 {
		return sock.SendBatch(fd, b.out[i:n])
	}
	return 1, sock.Send(fd, unsafe.Slice(h.Iov.Base, h.Iov.Len))
}

// split calls f for each datagram of row i.
func (b *batch) split(i int, f func([]byte)) {
	h := &b.out[i].Hdr
	for _, v := range unsafe.Slice(h.Iov, h.Iovlen) {
		data := unsafe.Slice(v.Base, v.Len)
		for size := b.size[i]; len(data) > size; data = data[size:] {
			f(data[:size])
		}
		f(data)
	}
}
