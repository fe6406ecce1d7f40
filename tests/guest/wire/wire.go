// Package wire is what a test and the agent in its guest say to each other: JSON values, one after
// the other, over a virtio-serial port. It also has what both do to traffic between them.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"io"
	"math/rand/v2"
)

// Port is the name of the virtio-serial port.
const Port = "agent"

// Operations. ID tells the command they are about.
const (
	Run   = "run"   // to the guest: run Data in a shell
	Input = "in"    // to the guest: more of its standard input
	EOF   = "eof"   // to the guest: the end of it
	Kill  = "kill"  // to the guest: send signal Code to its process group
	Ready = "ready" // from the guest: it has booted

	Output = "out"  // from the guest: Data from standard output
	Errors = "err"  // from the guest: from standard error
	Exit   = "exit" // from the guest: the command has ended with status Code
)

// Message is one value.
type Message struct {
	ID   int
	Op   string
	Data []byte `json:",omitempty"`
	Code int    `json:",omitempty"`
}

// Stream returns bytes without end that depend on nothing but the number.
func Stream(number uint64) io.Reader {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], number)
	return rand.NewChaCha8(seed)
}

// Digest of bytes that came.
type Digest struct{ hash.Hash }

// NewDigest returns an empty digest.
func NewDigest() Digest { return Digest{sha256.New()} }

// String returns the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d.Sum(nil)) }

// DigestOf returns the digest of the first n bytes of a stream.
func DigestOf(number uint64, n int64) string {
	d := NewDigest()
	io.CopyN(d, Stream(number), n)
	return d.String()
}
