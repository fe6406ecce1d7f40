package bed

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what the living processes of a tree have in use.
type Usage struct {
	// user and system, children that have ended and were waited for included; 10 ms steps
	CPU     time.Duration
	RSS     int // resident memory in bytes, shared pages counted in each process
	FDs     int // open descriptors
	Threads int
	PIDs    []int
}

// stat is what a line of /proc/PID/stat says about a process (proc_pid_stat(5)).
type stat struct {
	pid, ppid int
	state     string
	ticks     int // utime, stime, cutime and cstime
	threads   int
}

// Tree adds up what root and its living descendants use. A process that ends meanwhile is
// left out; zombies count for nothing.
func Tree(root int) (Usage, error) {
	all, err := processes()
	if err != nil {
		return Usage{}, err
	}
	children := make(map[int][]int)
	for _, p := range all {
		children[p.ppid] = append(children[p.ppid], p.pid)
	}
	var u Usage
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		p, ok := all[queue[0]]
		if !ok || p.state == "Z" || p.state == "X" {
			continue
		}
		queue = append(queue, children[p.pid]...)
		u.PIDs = append(u.PIDs, p.pid)
		u.CPU += time.Duration(p.ticks) * (time.Second / 100) // USER_HZ is 100 everywhere
		u.Threads += p.threads
		u.RSS += resident(p.pid)
		if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid)); err == nil {
			u.FDs += len(fds)
		}
	}
	if len(u.PIDs) == 0 {
		return u, fmt.Errorf("process %d: %w", root, os.ErrProcessDone)
	}
	return u, nil
}

// Alive returns the processes whose name (comm) is one of names, zombies left out. Within
// [Isolate] these are the program's own.
func Alive(names ...string) ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid))
		if err != nil || p.state == "Z" || p.state == "X" {
			continue
		}
		for _, n := range names {
			if strings.TrimSpace(string(comm)) == n {
				pids = append(pids, p.pid)
			}
		}
	}
	return pids, nil
}

func processes() (map[int]stat, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := make(map[int]stat)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil {
			all[pid] = s
		}
	}
	return all, nil
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 18 {
		return stat{}, fmt.Errorf("/proc/%d/stat is short", pid)
	}
	s := stat{pid: pid, state: f[0]}
	s.ppid, _ = strconv.Atoi(f[1])
	for _, t := range f[11:15] {
		n, _ := strconv.Atoi(t)
		s.ticks += n
	}
	s.threads, _ = strconv.Atoi(f[17])
	return s, nil
}

func resident(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n * os.Getpagesize()
}
