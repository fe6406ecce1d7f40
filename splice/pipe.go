package splice

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is the capacity wanted of a pipe in bytes: what fs.pipe-max-size allows unless it
	// was changed. With 256 KiB, four streams at once moved a tenth less.
	pipeSize = 1 << 20
	// minPipeSize is the least that is asked for, and what a pipe has by itself (pipe(7)).
	minPipeSize = 64 << 10
	// sparePipes is the number of pipes kept for later.
	sparePipes = 32
	// userPages is where the kernel says how many pages the pipes of an unprivileged user may have
	// before new ones become small (pipe(7)).
	userPages = "/proc/sys/fs/pipe-user-pages-soft"
)

// pipe is an empty pipe, or one that a stream holds.
type pipe struct{ r, w int }

func (p *pipe) close() {
	closeFD(p.r)
	closeFD(p.w)
}

// pipes keeps pipes.
type pipes struct {
	size int
	none bool // for tests: there are none

	mu    sync.Mutex
	spare []*pipe
	made  int // pipes there are
	ended bool
}

// pipeCapacity returns the size to ask for, so that sparePipes of them stay within the user's
// share.
func pipeCapacity() int {
	size := pipeSize
	b, err := os.ReadFile(userPages)
	if err != nil {
		return size
	}
	pages, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pages == 0 { // 0: no bound
		return size
	}
	for size > minPipeSize && size/os.Getpagesize()*sparePipes > pages {
		size /= 2
	}
	return size
}

// get returns an empty pipe, nil if none can be had. The caller holds it until put or close.
func (p *pipes) get() *pipe {
	p.mu.Lock()
	if n := len(p.spare); n > 0 {
		last := p.spare[n-1]
		p.spare = p.spare[:n-1]
		p.mu.Unlock()
		return last
	}
	p.made++
	p.mu.Unlock()
	var fds [2]int
	if p.none || unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		p.forget()
		return nil
	}
	if p.size > minPipeSize {
		// Beyond the user's share the pipe stays as it is, which will do.
		unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, p.size)
	}
	return &pipe{r: fds[0], w: fds[1]}
}

// put takes an empty pipe back.
func (p *pipes) put(one *pipe) {
	p.mu.Lock()
	if len(p.spare) < sparePipes && !p.ended {
		p.spare = append(p.spare, one)
		one = nil
	}
	p.mu.Unlock()
	if one != nil {
		p.lose(one)
	}
}

// lose closes a pipe, whatever is in it.
func (p *pipes) lose(one *pipe) {
	one.close()
	p.forget()
}

func (p *pipes) forget() {
	p.mu.Lock()
	p.made--
	p.mu.Unlock()
}

// end closes what is kept, and whatever comes back later.
func (p *pipes) end() {
	p.mu.Lock()
	spare := p.spare
	p.spare, p.ended = nil, true
	p.mu.Unlock()
	for _, one := range spare {
		p.lose(one)
	}
}
