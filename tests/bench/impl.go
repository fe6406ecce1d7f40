package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"fusilli/tests/bed"
)

// kind is how an implementation is called.
type kind int

const (
	pastaKind    kind = iota // pasta OPTIONS PID
	slirp4Kind               // slirp4netns OPTIONS PID INTERFACE
	loopbackKind             // nothing: the ends talk to each other in host
)

// impl is one program to measure.
type impl struct {
	name string
	path string
	kind kind
	args []string // more options
}

// noForward turns the port forwarding off that pasta does unasked.
var noForward = []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none"}

// implementations makes the list: ours first, then those given as NAME=PATH, or the peers
// in PATH where none is given. Paths come back absolute.
func implementations(ours string, given []string) ([]impl, error) {
	specs := given
	if len(specs) == 0 {
		for _, peer := range []string{"pasta", "slirp4netns"} {
			if path, err := exec.LookPath(peer); err == nil && !sameFile(path, ours) {
				specs = append(specs, peer+"="+path)
			}
		}
	}
	if ours != "" {
		specs = append([]string{"ours=" + ours}, specs...)
	}
	var list []impl
	for _, s := range specs {
		name, path, ok := strings.Cut(s, "=")
		if !ok {
			return nil, fmt.Errorf("implementation %q is not NAME=PATH", s)
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("implementation %s: %w", name, err)
		}
		im := impl{name: name, path: path}
		if strings.HasPrefix(filepath.Base(path), "slirp4netns") {
			im.kind = slirp4Kind
		} else {
			im.args = noForward
		}
		list = append(list, im)
	}
	return list, nil
}

func sameFile(a, b string) bool {
	sa, errA := os.Stat(a)
	sb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(sa, sb)
}

// session is a running implementation and the namespace it connects.
type session struct {
	bed    *bed.Bed
	target *bed.Target
	proc   *bed.Process
	self   string // this program, for generators
}

// connect starts im between a new target and the bed's host, with the options that c needs.
func (im impl) connect(ctx context.Context, b *bed.Bed, self string, c benchCase) (*session, error) {
	if im.kind == loopbackKind {
		return &session{bed: b, self: self}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	target, err := b.Target(ctx)
	if err != nil {
		return nil, err
	}
	pid, m := strconv.Itoa(target.PID), strconv.Itoa(c.mtu)
	var cmd *exec.Cmd
	if im.kind == slirp4Kind {
		cmd = exec.Command(im.path, "-c", "-6", "--mtu="+m, pid, "tap0")
	} else {
		args := []string{"--config-net", "--no-map-gw", "-f", "-q", "--mtu", m}
		if c.opts != nil {
			args = append(args, c.opts...)
		} else {
			args = append(args, im.args...)
		}
		cmd = exec.Command(im.path, append(args, pid)...)
	}
	proc, err := b.Host.Spawn(bed.Nobody, cmd)
	if err != nil {
		target.Close()
		return nil, err
	}
	s := &session{bed: b, target: target, proc: proc, self: self}
	if err := target.Configured(ctx, proc, im.kind == pastaKind); err != nil {
		s.close()
		return nil, err
	}
	for _, key := range []string{"ipv4/tcp_rmem", "ipv4/tcp_wmem"} {
		if err := target.Sysctl(key, "131072 524288 134217728"); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *session) close() {
	if s.target == nil {
		return
	}
	s.proc.Stop(5 * time.Second)
	s.target.Close()
}

// usage is what the translator has in use; nothing where there is none.
func (s *session) usage() (bed.Usage, error) {
	if s.proc == nil {
		return bed.Usage{}, nil
	}
	u, err := bed.Tree(s.proc.PID())
	if err != nil {
		return u, fmt.Errorf("the translator ended: %s", s.proc.Stderr())
	}
	return u, nil
}
