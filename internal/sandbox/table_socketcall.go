//go:build 386 || s390x

package sandbox

import "golang.org/x/sys/unix"

// Operations of socketcall(2), of linux/net.h.
const (
	opSocket = iota + 1
	opBind
	opConnect
	opListen
	opAccept
	opGetsockname
	opGetpeername
	opSocketpair
	opSend
	opRecv
	opSendto
	opRecvfrom
	opShutdown
	opSetsockopt
	opGetsockopt
	opSendmsg
	opRecvmsg
	opAccept4
)

// socketCalls is the one call by which Go's libraries make most calls of sockets on these machines,
// whose kernels had no others before Linux 4.3. Its arguments are in memory, where no filter sees
// them: of which kind a socket is, and which options it gets, is not checked here.
func socketCalls() []call {
	const why = "sockets, by the one call of old that Go's library makes for them"
	return []call{
		{"socketcall", unix.SYS_SOCKETCALL, both, carry, why, []rule{
			{is(0, opSocket, opBind, opConnect, opListen, opGetsockname, opGetpeername, opSendto, opRecvfrom,
				opShutdown, opSetsockopt, opGetsockopt, opSendmsg, opRecvmsg, opAccept4)},
		}, "the operations that have a call of their own in this table; of them, whatever arguments"},
		{"socketcall", unix.SYS_SOCKETCALL, both, Waiting, why, []rule{
			{is(0, opSendto, opGetsockopt, opSendmsg, opRecvmsg)},
		}, "the operations that have a call of their own in this table; of them, whatever arguments"},
	}
}
