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
// The translator is this executable, started again with a socket as descriptor 3 and
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
// it executes a program, enters it, or is created in it, by raw system calls (cloneExec). The
// holder comes from there.
//
// Executing a program as a user other than the namespace's root loses all capabilities.
// The child makes those a translator needs ambient before, which keeps them.
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
