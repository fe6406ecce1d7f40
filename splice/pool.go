package splice

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"
)

// poolSize is the number of sockets kept ready for each family on each side.
const poolSize = 32

// pool keeps sockets of one side, kind and family that are connected to nobody yet, so that a new
// flow need not wait for the thread that can open them.
type pool struct {
	open   func() (int, error)
	inside func(func() error) error // runs a function where sockets are to be opened

	low chan struct{} // has room for one: a wish to be filled

	mu    sync.Mutex
	spare []int
}

func newPool(open func() (int, error), inside func(func() error) error) *pool {
	return &pool{open: open, inside: inside, low: make(chan struct{}, 1)}
}

// get returns a socket. Errors are those of socket(2), setsockopt(2), and of Config.InNamespace.
func (p *pool) get() (int, error) {
	p.mu.Lock()
	n := len(p.spare)
	fd := -1
	if n > 0 {
		n--
		fd = p.spare[n]
		p.spare = p.spare[:n]
	}
	p.mu.Unlock()
	if n <= poolSize/2 {
		select {
		case p.low <- struct{}{}:
		default:
		}
	}
	if fd >= 0 {
		return fd, nil
	}
	err := p.inside(func() (err error) {
		fd, err = p.open()
		return err
	})
	return fd, err
}

// run fills the pool when the first socket was asked for, and whenever half of it is gone, until
// ctx ends, and closes what is left. A socket that cannot be opened is not missed: get will say
// why.
func (p *pool) run(ctx context.Context) {
	defer p.drain()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.low:
			p.fill()
		}
	}
}

func (p *pool) fill() {
	p.mu.Lock()
	missing := poolSize - len(p.spare)
	p.mu.Unlock()
	fresh := make([]int, 0, poolSize)
	p.inside(func() error {
		for range missing {
			fd, err := p.open()
			if err != nil {
				return err
			}
			fresh = append(fresh, fd)
		}
		return nil
	})
	p.mu.Lock()
	p.spare = append(p.spare, fresh...)
	p.mu.Unlock()
}

func (p *pool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range p.spare {
		unix.Close(fd)
	}
	p.spare = nil
}
