// Package sandbox takes away from a running translator whatever it does not need to carry
// packets, so that the process which parses frames from untrusted guests is worth nothing to
// who takes it over. It starts no processes: what has to be done before a program is executed
// (namespaces, bounding set, no_new_privs) is package process's, which says so there.
//
// # What is left
//
// Confine is called once, when everything that will be read is open. Afterwards:
//
//	file system    The root is an empty, read-only tmpfs of the translator's own mount
//	               namespace. The host's mounts are not hidden but gone.
//	capabilities   Every set of every thread is empty. A translator that may have to listen on
//	               low ports later keeps CAP_NET_BIND_SERVICE, which in a user namespace of the
//	               guest's is good for the guest's namespace only.
//	system calls   A filter on every thread kills the process at any call that is not in the
//	               table (Calls), or is with arguments that are not.
//	Landlock       Where the kernel has it (5.13): no path at all, no TCP port to bind beyond
//	               what was asked for, no signal and no abstract UNIX socket to the outside.
//	memory         Not dumpable: no core file, and no other process of the user may look into it.
//	               That
//	               the root of the guest's user namespace may not either is due to how a
//	               translator
//	               starts, which package process explains.
//
// Two other lists of the table are for the time before, when a translator opens things (Start), and
// for the launcher, which only waits once its children run (Wait). Filters add up, so a
// translator's first allows what its second does. A command that pasta runs is forked from the
// launcher before, and has neither filter nor no_new_privs.
//
// Sockets inside the guest's network namespace are opened by the thread that lives there, which
// needs no right to enter anything.
//
// # Threads
//
// Capabilities and Landlock domains belong to threads. They are changed on all threads that Go's
// runtime knows, at a moment when none is created (syscall.AllThreadsSyscall); later threads
// inherit them. The filter is synchronised by the kernel (SECCOMP_FILTER_FLAG_TSYNC).
//
// A program linked with a C library (cgo, the race detector) has threads that Go does not know,
// and system calls that are not ours. It gets what the kernel keeps for the whole process, the
// empty root among it, and a warning: it is for tests. What is meant to be used is built without.
//
// # Failure
//
// Each step that fails is an error and ends the translator, except Landlock, which a kernel may
// well lack: nothing is silently left out.
package sandbox
