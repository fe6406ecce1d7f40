// Package process is the program's process model: who is started, in which namespaces,
// who waits for whom, and how each of them ends. It moves no packets and reads no
// command line. What limits a translator that runs already (empty root, system call
// filter) is not here either.
//
// # Three processes
//
// The launcher is the process the user started. It opens what has to be opened with the
// user's own rights (PID file, namespaces, what tells that they are gone), starts the
// others, and stays only as long as somebody needs its exit status.
//
// The holder is the first process of fresh namespaces. It makes them habitable (a /proc,
// a host name, ping permitted to everyone), waits until they are connected, and then
// becomes the command. It lives only in the command form.
//
// The translator lives in the target's user namespace and in the host's network
// namespace, so that its sockets are the host's, and it keeps one thread in the target's
// network namespace (Thread), where the tap is opened and listeners are found.
//
// The translator is this program, begun anew with a socket as descriptor 3 and
// StageVariable in the environment. The variable only says "do not behave as a
// launcher"; who one is, and the descriptors one works with, arrive as the first message
// on the socket. Without a launcher at the other end there is no such message, and the
// process ends.
//
// The holder is a process that executes nothing before the command: all it has to do are some
// twenty system calls (hold), and to start a Go program takes longer than they do. It and the
// translator come from one clone of the launcher, since it is the copy that takes time. The
// holder reports on a socket, too. While it creates the namespaces that take longest, the
// translator starts already, and waits to be greeted.
//
// # Entering a user namespace
//
// The kernel lets no multi-threaded process enter a user namespace, and every Go program
// is one. So the translator is cloned by hand, and the child, which has one thread until
// the program begins in it, enters it, or is created in it, by raw system calls (cloneSelf). The
// holder comes from there.
//
// The child gives up all capabilities but those a translator needs to start.
//
// # Who may look into whom
//
// Nothing that runs in the namespace, and no other process of the user, may read or change the
// memory of a launcher, a holder or a translator, or take their descriptors: they hold the host's
// sockets. What the kernel asks when one process wants to trace another, open its files in /proc,
// or enter its namespaces (ptrace(2), "Ptrace access mode checking") is, when they are of the same
// user or the first has CAP_SYS_PTRACE in the second's user namespace:
//
//   - Is the second dumpable (PR_SET_DUMPABLE)? Then it may.
//   - Else: has the first CAP_SYS_PTRACE in the user namespace that the second's memory belongs to?
//     That is the one in which the second's program was executed, whatever it has entered
//     afterwards, and a fork's is that of its parent (mm->user_ns).
//
// So each of our processes makes itself not dumpable before it does anything else (Begin), and none
// executes a program once it is in a user namespace: the translator is begun anew in the clone,
// without execve (package restart). Its memory belongs to the user namespace that the user called
// us in, where the root of the guest's namespace, and the owner of that, have no right. The holder
// lives in such memory, too, until it executes the command, which is the user's own.
//
// A process that is not dumpable hides its namespaces also from its parent, so the holder passes
// its network namespace to the launcher. Its id maps can be written only while it is dumpable:
// between two system calls, a clone that creates a user namespace is. Before Begin, the launcher is
// as open as any program at its start.
//
// What the kernel does not refuse:
//
//	signals   A process of the same user may send them, and set limits and processors (prlimit(2),
//	          sched_setaffinity(2)), if it sees the PID: libvirt and Podman end us so. A command
//	          that we start, and what else is in a PID namespace of its own, cannot, although it
//	          may see the process in an older /proc.
//	root      The real root, and, where we are called inside a user namespace (a container), the
//	          root and the owner of that one, may look into everything there.
//	sandbox   With --enable-sandbox, slirp4netns's launcher is executed inside the target's user
//	          namespace, and what it starts belongs to that (app's enterForSandbox).
//
// Programs linked with a C library and position-independent ones cannot be begun anew, and execute
// themselves in the clone. The first are for tests; with the others, the launcher warns. Ambient
// capabilities are for them: executing a program as a user other than the namespace's root loses
// all others.
//
// Other ways were weighed. The root of a nested user namespace cannot look into processes of the
// outer one, but its owner can, and a namespace that we are to attach to has no room for another
// around it. A file that the user may execute but not read has the same effect on mm->user_ns, but
// only packages can install it so. A helper in the namespace that passes on descriptors costs a
// round trip for each local connection, and leaves the translator without the right to an empty
// root. An entry point of our own, which enters before Go's runtime starts, takes options of the
// linker that "go build" does not have. To begin anew is also the fastest: until the command runs
// it takes 51 ms where execve takes 63 ms (go run ./tests/bench -cases startup on a busy machine
// with two CPUs).
//
// # Readiness
//
// The translator answers "ready" or "fail" and the reason, once. Then the launcher
//
//	command form   writes its own PID to the PID file, releases the holder, relays the
//	               command's exit status
//	background     writes the translator's PID to the PID file, exits 0
//	foreground     writes its own PID, stays until the translator ends
//
// In background the translator has let go of the terminal, the session and the standard
// streams before it answers, because callers wait for these streams to close.
//
// # Messages
//
// Each process logs for itself, to the same places: the launcher opens log file and system
// log, and passes the descriptors on (Start.Pass). Once ready, a translator in background or
// beside a command leaves standard error alone.
//
// # Endings
//
// The socket between launcher and translator is also their bond: in the forms in which
// the launcher stays, a translator that sees the other end close ends, however the
// launcher died. After the end of the command it is told so (ErrCommandEnded), and need
// not take apart a namespace that vanishes anyway. The holder ends in the same way until
// it is released, and the kernel kills it if it cannot (PR_SET_PDEATHSIG); a released
// command survives the launcher.
//
// SIGTERM and SIGQUIT end the translator in order and with status 0; so they do the
// launcher, together with its translator. All others act as the system has it. A target
// that goes away ends the translator with status 0: a process is watched by a pidfd
// (Linux 5.3), a path by inotify on its directory, and by a look each second where
// neither works.
package process
