package process

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/internal/sandbox"
)

// endTimeout is what a translator gets to end in order before it is killed.
const endTimeout = 2 * time.Second

// commandNamespaces are those a command gets, beside a user and a PID namespace.
const commandNamespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// sandboxNamespaces are those a translator gets of its own, beside a PID namespace where the
// launcher does not stay.
const sandboxNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Launch starts what spec asks for and stays as long as the form demands. It returns the
// exit status for the process, and with a failure the message for the user. When it
// returns, nothing it started runs any more but a background translator or, where this
// process is told to end or its translator failed, the command.
func Launch(start *Start, spec Spec, log *zap.Logger) (int, error) {
	l := &launcher{spec: spec, log: log, start: start, signals: make(chan os.Signal, 1)}
	defer l.close()
	err := l.begin()
	// Until here, a signal ends us as the system has it, and what was started with us. To look for
	// signals takes Go two threads, which can be created while the translator starts.
	signal.Notify(l.signals, unix.SIGTERM, unix.SIGQUIT)
	defer signal.Stop(l.signals)
	signal.Ignore(unix.SIGPIPE)
	if err == nil {
		err = l.watch()
	}
	if err == nil && !spec.Renounce {
		err = l.confine()
	}
	if err != nil {
		l.abandon()
		l.undo()
		return 1, err
	}
	return l.supervise()
}

// launcher is the state of one Launch, used by its goroutine only.
type launcher struct {
	spec    Spec
	log     *zap.Logger
	start   *Start
	signals chan os.Signal

	user       User
	change     bool // user is not who we are
	pidFile    *os.File
	newPIDFile bool       // there was none before
	files      []*os.File // to be closed at the end

	translator *child
	holder     *holder // nil unless there is a command
}

// child is a process we started and must wait for.
type child struct {
	pid  int
	link *os.File // our end

	process *os.Process   // once it is watched
	done    chan struct{} // closed when it has ended, after state is set
	state   *os.ProcessState
	err     error
}

// watch has done closed when the child has ended. The first os.Process of a program takes 2 ms, so
// this is for later than its start.
func (c *child) watch() error {
	p, err := os.FindProcess(c.pid)
	if err != nil {
		return err
	}
	c.process, c.done = p, make(chan struct{})
	go func() {
		defer close(c.done)
		c.state, c.err = p.Wait()
	}()
	return nil
}

// status is the exit status of an ended child, as a shell has it.
func (c *child) status() int {
	if c.err != nil {
		return 1
	}
	ws, ok := c.state.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return c.state.ExitCode()
}

// kill ends a child at once and waits for it.
func (c *child) kill() {
	if c == nil {
		return
	}
	if c.process == nil {
		unix.Kill(c.pid, unix.SIGKILL)
		reap(c.pid)
		return
	}
	c.process.Kill() // fails only if it has ended
	<-c.done
}

// end ends a child in order, but soon.
func (c *child) end() {
	c.process.Signal(unix.SIGTERM) // fails only if it has ended
	c.await()
}

// await waits for a child that was told to end.
func (c *child) await() {
	late := time.NewTimer(endTimeout)
	defer late.Stop()
	select {
	case <-c.done:
	case <-late.C:
		c.kill()
	}
}

// undo removes what was made for a translator that there is none of.
func (l *launcher) undo() {
	made := l.spec.Made
	if l.newPIDFile {
		made = append(slices.Clone(made), l.spec.PIDFile)
	}
	for _, path := range made {
		os.Remove(path) // we may be another user by now, who may not
	}
}

func (l *launcher) abandon() {
	if l.holder != nil {
		l.holder.kill()
	}
	l.translator.kill()
}

// watch watches the processes that were started.
func (l *launcher) watch() error {
	if l.holder != nil {
		if err := l.holder.watch(); err != nil {
			return err
		}
	}
	return l.translator.watch()
}

func (l *launcher) close() {
	closeAll(l.files)
}

// keep has f closed when the launcher returns.
func (l *launcher) keep(f *os.File) *os.File {
	l.files = append(l.files, f)
	return f
}

// begin does everything up to the point where the others work and we wait.
func (l *launcher) begin() error {
	l.user, l.change = selectUser(l.spec.RunAs, l.log)
	if l.spec.PIDFile != "" {
		f, err := openFile(l.spec.PIDFile, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
		l.newPIDFile = err == nil
		if errors.Is(err, unix.EEXIST) {
			f, err = openFile(l.spec.PIDFile, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY, 0o600)
		}
		if err != nil {
			return Failf("Couldn't open PID file %s: %s", l.spec.PIDFile, Reason(err))
		}
		l.pidFile = l.keep(f)
	}
	switch {
	case l.spec.Alone:
		return l.beginAlone()
	case l.spec.runsCommand():
		return l.beginCommand()
	}
	return l.beginAttached()
}

// beginCommand starts the holder, which creates the command's namespaces, and the translator that
// joins them.
func (l *launcher) beginCommand() error {
	if l.change && !l.spec.KeepUserNS {
		// From here on all is as if that user had started us.
		if err := become(l.user); err != nil {
			return err
		}
		l.change = false
	}
	userNS, err := l.openUserNS(l.spec.UserNS)
	if err != nil {
		return err
	}
	ours, theirs, err := newLink()
	if err != nil {
		return err
	}
	defer theirs.Close()
	l.keep(ours)
	p, link, err := l.prepareHolder(theirs)
	if err != nil {
		return err
	}
	defer link.Close()
	l.log.Sync() // nothing of ours is left to write when the command runs
	c := &clone{userNS: userNS, holder: p, mapped: l.spec.createsUserNS()}
	if err := l.startTranslator(c); err != nil {
		return err
	}
	theirs.Close()
	link.Close()
	l.holder = &holder{child: &child{pid: c.holderPID, link: ours}}
	// The translator gets to work while the holder creates the namespaces.
	if err := l.holder.await(); err != nil {
		return err
	}
	l.holder.missed.warn(l.log)
	return l.greet(l.keep(l.holder.netNS))
}

// beginAlone starts a translator that joins no network namespace.
func (l *launcher) beginAlone() error {
	userNS, err := l.openUserNS(l.spec.UserNS)
	if err != nil {
		return err
	}
	if err := l.startTranslator(&clone{userNS: userNS, newUser: userNS == nil && !l.spec.KeepUserNS}); err != nil {
		return err
	}
	if err := l.greet(); err != nil {
		return err
	}
	if l.change {
		return become(l.user)
	}
	return nil
}

// beginAttached opens the target's namespaces, and starts the translator that joins them.
func (l *launcher) beginAttached() error {
	var files []*os.File
	var unwatched error // told after what is wrong with the namespaces themselves
	if !l.spec.StayWithoutNetNS {
		files, unwatched = openWatch(l.spec.NetNS)
		l.files = append(l.files, files...)
	}
	userNS, err := l.openUserNS(l.spec.UserNS)
	if err != nil {
		return err
	}
	netNS, err := l.openNetNS(l.spec.NetNS)
	switch {
	case err == nil:
		files = append(files, netNS)
	case userNS != nil && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
		// The translator may have the right to, once inside.
	default:
		return err
	}
	if unwatched != nil {
		return unwatched
	}
	if err := l.startTranslator(&clone{userNS: userNS}); err != nil {
		if netNS != nil && errors.As(err, new(isolateError)) {
			// Whoever may not have namespaces may not enter one either, and that is
			// what the user wants to know.
			thread, cannot := StartThread(int(netNS.Fd()))
			if cannot != nil {
				return switchError(cannot)
			}
			thread.Close()
		}
		return err
	}
	if err := l.greet(files...); err != nil {
		return err
	}
	if l.change {
		return become(l.user)
	}
	return nil
}

// openUserNS opens the user namespace to join. It returns nil for no path and for our
// own namespace, which cannot be joined.
func (l *launcher) openUserNS(path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	f, err := openFile(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, Failf("Couldn't open user namespace %s: %s", path, Reason(err))
	}
	l.keep(f)
	var own, other unix.Stat_t
	if unix.Stat("/proc/self/ns/user", &own) == nil && unix.Fstat(int(f.Fd()), &other) == nil &&
		own.Dev == other.Dev && own.Ino == other.Ino {
		return nil, nil
	}
	return f, nil
}

func (l *launcher) openNetNS(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &openError{path, err}
	}
	return l.keep(os.NewFile(uintptr(fd), fdNetNS)), nil
}

// openError tells that a network namespace cannot be opened.
type openError struct {
	path string
	err  error
}

func (e *openError) Error() string {
	return fmt.Sprintf("Couldn't open network namespace %s: %s", e.path, Reason(e.err))
}

func (e *openError) Unwrap() error { return e.err }

// startTranslator starts the translator as c says, which lacks what is the same in all forms. It
// goes on when it is greeted.
func (l *launcher) startTranslator(c *clone) error {
	ours, theirs, err := newLink()
	if err != nil {
		return err
	}
	defer theirs.Close()
	l.keep(ours)
	c.link, c.flags, c.procs = theirs, sandboxNamespaces, l.spec.Procs
	if !l.spec.stays() {
		c.flags |= unix.CLONE_NEWPID
	}
	if l.change {
		c.user = &l.user
	}
	pid, err := c.start()
	if err != nil {
		return err
	}
	l.translator = &child{pid: pid, link: ours}
	if c.exposed != nil {
		l.log.Warn("Other processes of the user may look into the translator: it could not be begun without execve: " + Reason(c.exposed))
	}
	return nil
}

// greet says hello to the translator and passes files on to it.
func (l *launcher) greet(files ...*os.File) error {
	h := hello{Role: Translator, Origin: l.start.hello.Origin}
	// What was logged is to be read before what the translator will log.
	l.log.Sync()
	return sendHello(l.translator.link, h, append(files, l.start.pass...)...)
}

// supervise waits for readiness, and for whatever ends the launcher.
func (l *launcher) supervise() (int, error) {
	answers := make(chan answer, 1)
	link := int(l.translator.link.Fd()) // which may be closed before there is an answer
	go func() { answers <- receiveAnswer(link) }()

	exit := l.exit()
	var commandDone <-chan struct{}
	if l.holder != nil {
		commandDone = l.holder.done
	}
	released := false
	for {
		select {
		case a := <-answers:
			if err := l.answered(a); err != nil {
				l.abandon()
				return 1, err
			}
			if !l.spec.stays() {
				return 0, nil
			}
			released, answers = true, nil
		case <-exit:
			l.translator.end()
			return 0, nil
		case <-l.signals:
			l.translator.end()
			if !released && l.holder != nil {
				l.holder.kill()
			}
			return 0, nil
		case <-commandDone:
			send(int(l.translator.link.Fd()), ended) // fails only if it has ended
			l.translator.await()
			if err := l.holder.failed(); err != nil {
				return 1, err
			}
			return l.holder.status(), nil
		case <-l.done(released):
			status := l.translator.status()
			if status == filtered {
				return status, errFiltered
			}
			return status, nil
		}
	}
}

// confine leaves the launcher with the system calls it needs to wait for its processes, which run
// already and are untouched by that.
func (l *launcher) confine() error {
	pids := []int{l.translator.pid}
	if l.holder != nil {
		pids = append(pids, l.holder.pid)
	}
	calls, err := sandbox.Wait(l.spec.mode(), l.spec.Filter, pids...)
	if err != nil {
		return sandboxError(err)
	}
	l.log.Debug("launcher waits", zap.Int("system_calls", calls))
	return nil
}

// filtered is the status of a translator that its filter has ended.
const filtered = 128 + int(unix.SIGSYS)

var errFiltered = Failf("The translator made a system call it is not allowed, and was killed: please report this")

// done reports the translator's end once it has answered: before, its answer tells more.
func (l *launcher) done(answered bool) <-chan struct{} {
	if !answered {
		return nil
	}
	return l.translator.done
}

// answered acts on the translator's answer. Everything it does is done before anybody
// can see that the namespace is connected.
func (l *launcher) answered(a answer) error {
	if !a.ready {
		if a.fail != "" {
			return failure(a.fail)
		}
		<-l.translator.done
		if l.translator.status() == filtered {
			return errFiltered
		}
		return Failf("Translator ended before it was ready, with status %d", l.translator.status())
	}
	if l.pidFile != nil {
		pid := l.translator.pid
		if l.spec.stays() {
			pid = os.Getpid()
		}
		if _, err := fmt.Fprintln(l.pidFile, pid); err != nil {
			return Failf("Couldn't write PID file %s: %s", l.spec.PIDFile, Reason(err))
		}
	}
	if l.holder != nil {
		send(int(l.holder.link.Fd()), release) // fails only if it has ended
	}
	if l.spec.Renounce {
		if unix.Gettid() == os.Getpid() {
			if err := sandbox.Enclose("/etc", "/run"); err != nil && !errors.Is(err, unix.EPERM) {
				l.log.Warn(err.Error()) // clients look at it, nothing rests on it
			}
		}
		if err := sandbox.Renounce(); err != nil {
			return err
		}
		if err := l.confine(); err != nil {
			return err
		}
	}
	if l.spec.Ready != nil {
		l.spec.Ready.WriteString("1") // whoever does not listen need not know
		l.spec.Ready.Close()
	}
	return nil
}

// exit reports an event of the descriptor that ends everything, if there is one. What poll(2)
// cannot wait for is an event, too.
func (l *launcher) exit() <-chan struct{} {
	if l.spec.Exit == nil {
		return nil
	}
	event := make(chan struct{})
	go func() {
		defer close(event)
		p := []unix.PollFd{{Fd: int32(l.spec.Exit.Fd()), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(p, -1); n > 0 || !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return
			}
		}
	}()
	return event
}
