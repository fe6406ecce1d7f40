package process

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Thread is a thread of this process that lives in another network namespace. Sockets
// and tap devices opened by functions that run on it belong to that namespace for good;
// reads of /proc/thread-self/net see it, too.
type Thread struct {
	calls chan call
	stop  chan struct{} // closed by Close
	done  chan struct{} // closed when the thread takes no more calls
	once  sync.Once
}

type call struct {
	f      func() error
	result chan<- error
}

// StartThread moves a fresh thread into the network namespace that fd refers to
// (setns(2)). fd stays the caller's and is not needed afterwards.
func StartThread(fd int) (*Thread, error) {
	t := &Thread{
		calls: make(chan call),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	entered := make(chan error)
	go offMainThread(func() { t.run(fd, entered) })
	if err := <-entered; err != nil {
		return nil, err
	}
	return t, nil
}

// offMainThread calls f, which may change its thread for good. The thread ends with f
// rather than serve other goroutines. It is never the process's main thread: that one
// does not end, and its namespace is what /proc/self and /proc/net show.
func offMainThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // still locked
	}
	defer runtime.UnlockOSThread()
	locked := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(locked)
		f()
	}()
	<-locked // until then we keep the main thread from that goroutine
}

func (t *Thread) run(fd int, entered chan<- error) {
	defer close(t.done)
	err := unix.Setns(fd, unix.CLONE_NEWNET)
	if err != nil {
		entered <- fmt.Errorf("enter network namespace: %w", err)
		return
	}
	entered <- nil
	for {
		select {
		case <-t.stop:
			return
		case c := <-t.calls:
			c.result <- c.f()
		}
	}
}

// Do runs f on the thread and returns what it returns. Calls run one after the other, so
// f must not call Do and should not wait. Any goroutine may call it. After Close it
// returns os.ErrClosed.
func (t *Thread) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.calls <- call{f, result}:
		return <-result
	case <-t.done:
		return os.ErrClosed
	}
}

// Close ends the thread after the call that is running, and waits for it. What was
// opened on it stays open.
func (t *Thread) Close() {
	t.once.Do(func() { close(t.stop) })
	<-t.done
}
