package process

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"fusilli/internal/logging"
	"fusilli/internal/sandbox"
)

// Env is where a translator finds itself: in the host's network namespace, with a thread
// in the target's.
type Env struct {
	// NetNS is a thread in the target's network namespace, nil if there is no target. It
	// belongs to Translate, which closes it when its function has returned.
	NetNS *Thread

	spec  Spec
	start *Start
	log   *logging.Logger
	ready bool
}

// File returns what the launcher passed on under that name, as Start.File does.
func (e *Env) File(name string) (*os.File, bool) { return e.start.File(name) }

// ErrCommandEnded is the cause of the context's end (context.Cause) when the command has
// ended. Its network namespace goes away with us, so what is in there need not be taken
// down piece by piece while the user waits: unregistering a tap takes some 20 ms, making
// it persistent (TUNSETPERSIST) and closing it none.
var ErrCommandEnded = errors.New("the command has ended")

// Other causes. None is an error of the translator.
var (
	errSignal   = errors.New("told to end by a signal")
	errGone     = errors.New("the namespace is gone")
	errLauncher = errors.New("the launcher is gone")
)

// Translate prepares a translator, runs run, and returns the process's exit status. The
// context ends when the process is told to end or has no reason to go on: run then
// returns nil. An error of run is the launcher's message and exit status 1 if run has not
// called Ready, and logged afterwards.
func Translate(start *Start, spec Spec, log *logging.Logger, run func(context.Context, *Env) error) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGQUIT)
	defer signal.Stop(signals)
	signal.Ignore(unix.SIGPIPE)
	raiseFiles()

	env := &Env{spec: spec, start: start, log: log}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	calls, err := sandbox.Start(spec.mode(), spec.Filter)
	if err != nil {
		err = sandboxError(err)
	} else {
		log.Debug("translator starts", zap.Int("system_calls", calls))
		err = env.enter(start)
	}
	if err == nil {
		var wg sync.WaitGroup
		env.watch(ctx, cancel, &wg, start, signals)
		err = run(ctx, env)
		cancel(context.Canceled)
		if env.NetNS != nil {
			env.NetNS.Close()
		}
		wg.Wait()
	}
	switch {
	case !env.ready:
		if err == nil {
			err = context.Cause(ctx)
		}
		log.Sync()                           // what was said before the failure comes before it
		send(linkFD, answerFail+err.Error()) // if the launcher is gone, nobody wants to know
		return 1
	case err != nil:
		log.Error(err.Error())
		return 1
	}
	return 0
}

// showName gives a process that has executed selfPath the name it was called by. The one the
// kernel made up from the path tells users nothing, and they look for processes by name.
func showName() {
	name := filepath.Base(os.Args[0])
	os.WriteFile("/proc/self/comm", []byte(name), 0) // a name is not worth failing for
}

// raiseFiles allows as many open files as the system lets us have: each flow needs one.
// What Go's runtime does by itself stops one short.
func raiseFiles() {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		lim.Cur = lim.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) // less will do
	}
}

// enter starts the thread in the target's network namespace.
func (e *Env) enter(start *Start) error {
	if e.spec.Alone {
		return nil
	}
	fd, passed := start.files[fdNetNS]
	if !passed {
		var err error
		if fd, err = unix.Open(e.spec.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return &openError{e.spec.NetNS, err}
		}
	}
	defer unix.Close(fd)
	thread, err := StartThread(fd)
	if err != nil {
		return switchError(err)
	}
	e.NetNS = thread
	return nil
}

// switchError tells why a network namespace cannot be entered.
func switchError(err error) error {
	return Failf("Couldn't switch to pasta namespaces: %s", whyNot(err, "a network namespace"))
}

// whyNot is why setns(2) has failed with a descriptor that is to be of kind.
func whyNot(err error, kind string) string {
	if errors.Is(err, unix.EINVAL) {
		return Reason(err) + ": it is not " + kind
	}
	return Reason(err)
}

// watch starts what ends the context; all of it ends with the context.
func (e *Env) watch(ctx context.Context, cancel context.CancelCauseFunc, wg *sync.WaitGroup, start *Start, signals <-chan os.Signal) {
	wg.Go(func() {
		select {
		case <-signals:
			cancel(errSignal)
		case <-ctx.Done():
		}
	})
	if e.spec.stays() {
		wg.Go(func() { cancel(awaitLauncher(ctx)) })
	}
	for _, kind := range []string{fdProcess, fdInotify, fdDir} {
		fd, ok := start.files[kind]
		if !ok {
			continue
		}
		wg.Go(func() {
			awaitGone(ctx, kind, fd, e.spec.NetNS, func() {
				e.log.Info("Namespace " + e.spec.NetNS + " is gone, exiting")
				cancel(errGone)
			})
		})
	}
}

// awaitLauncher waits until the launcher has a reason for us to end, or has ended itself,
// and returns which.
func awaitLauncher(ctx context.Context) error {
	fd, err := unix.FcntlInt(linkFD, unix.F_DUPFD_CLOEXEC, linkFD+1)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), "link")
	defer f.Close()
	if err := awaitReadable(ctx, f); err != nil {
		return err
	}
	if word, err := receive(fd); err == nil && word == ended {
		return ErrCommandEnded
	}
	return errLauncher
}

// Ready confines the process (package sandbox) and tells the launcher that the namespace is
// connected: everything that will be needed is open by then. In background it first lets
// go of the caller's session and streams; while a command runs, of the
// streams. Which messages standard error still gets is for Spec to say. It is to be called
// once, by the goroutine that runs the translator; when it fails, the translator is to end.
func (e *Env) Ready() error {
	if err := e.detach(); err != nil {
		return err
	}
	if err := e.confine(); err != nil {
		return sandboxError(err)
	}
	if err := send(linkFD, answerReady); err != nil {
		return errLauncher
	}
	e.ready = true
	if !e.spec.stays() {
		return unix.Close(linkFD)
	}
	return nil
}

// sandboxError tells why a process cannot be confined.
func sandboxError(err error) error { return Failf("%s\nFailed to sandbox process, exiting", err) }

// confine leaves the process with what it needs to carry packets.
func (e *Env) confine() error {
	f, err := sandbox.Confine(sandbox.Options{
		Mode:           e.spec.mode(),
		Filter:         e.spec.Filter,
		LatePorts:      e.spec.LatePorts,
		ChrootFallback: e.spec.ChrootFallback,
		Info:           func(text string) { e.log.Info(text) },
		Warn:           func(text string) { e.log.Warn(text) },
	})
	if err != nil {
		return err
	}
	e.log.Debug("confined", zap.String("root", f.Root), zap.Stringer("capabilities", f.Caps),
		zap.String("landlock", f.Landlock), zap.Int("system_calls", f.Calls), zap.String("others", string(f.Filter)))
	return nil
}

func (e *Env) detach() error {
	streams := []int{unix.Stdin, unix.Stdout, unix.Stderr}
	switch {
	case !e.spec.stays():
		if _, err := unix.Setsid(); err != nil {
			return err
		}
		e.quieten()
	case e.spec.runsCommand() && !e.spec.Debug, e.spec.LogElsewhere:
		e.quieten()
		if e.spec.KeepStderr {
			streams = streams[:2]
		}
	default:
		streams = streams[:2]
	}
	return detachStreams(streams...)
}

// quieten shows what is queued, and nothing more.
func (e *Env) quieten() {
	e.log.Sync()
	e.log.Mute()
}
