package bed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running program. Its methods may be called side by side.
type Process struct {
	cmd  *exec.Cmd
	errs buffer
	done chan struct{}
	err  error // of Wait; read after done
}

// Spawn starts cmd as [NS.Start] does and waits for it in the background. What cmd writes
// to standard error is kept, unless cmd.Stderr is set.
func (n *NS) Spawn(user User, cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, done: make(chan struct{})}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.errs
	}
	// A daemon that keeps standard error open must not keep Wait from returning.
	cmd.WaitDelay = time.Second
	if err := n.Start(user, cmd); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Name is the path of the program.
func (p *Process) Name() string { return p.cmd.Path }

// PID is the process's identifier.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stderr is what the process has written to standard error so far.
func (p *Process) Stderr() string { return p.errs.String() }

// Status is the exit status of a process that has ended, 128 and the signal's number if
// it was killed, and -1 if it could not be waited for. It waits for the end.
func (p *Process) Status() int {
	<-p.done
	var exit *exec.ExitError
	switch {
	case p.err == nil || errors.Is(p.err, exec.ErrWaitDelay):
		return 0
	case errors.As(p.err, &exit):
		return code(exit.Sys().(syscall.WaitStatus))
	}
	return -1
}

// Stop sends SIGTERM to the process, and SIGKILL to its group once it has ended or grace
// is over. It returns the exit status.
func (p *Process) Stop(grace time.Duration) int {
	select {
	case <-p.done:
	default:
		p.cmd.Process.Signal(unix.SIGTERM)
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		}
		unix.Kill(-p.PID(), unix.SIGKILL)
	}
	return p.Status()
}

// buffer is a bytes.Buffer for one writer and any reader.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Provide copies an executable to where every user can run it and returns the copy's
// path, which ends in name. The copy vanishes with the isolation.
func Provide(path, name string) (string, error) {
	if Outside() {
		return "", errors.New("bed.Provide is for use inside bed.Isolate")
	}
	from, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer from.Close()
	dir, err := os.MkdirTemp("/run", "bin")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	copied := filepath.Join(dir, name)
	to, err := os.OpenFile(copied, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(to, from)
	if err2 := to.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Chmod(copied, 0o755) // whatever the umask
	}
	if err != nil {
		return "", fmt.Errorf("copy %s: %w", path, err)
	}
	return copied, nil
}
