package sandbox

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"fusilli/tests/reach"
)

// dead are packages that are linked because others mention them. Nothing calls them here.
var dead = []string{
	"net/http", "crypto/tls", "crypto/x509", // zap's level can be changed by HTTP
	// firmware, of the DHCP library
	"github.com/pierrec",
	// manuals of command lines
	"github.com/cpuguy83", "github.com/russross", "html", "text/template",
}

// An exception is a function ("F") or a call ("F > G": of G by F) that could be reached as far as a
// graph of calls tells. phases are those in which it is not, and why says what keeps it from that.
type exception struct {
	name   string
	phases Phase
	why    string
}

var exceptions = []exception{
	{"fusilli/internal/qrap.Main", always, "A program of its own."},
	{"fusilli/internal/pesto.Main", always, "A program of its own."},
	{"fusilli/internal/process.Launch", carry, "The launcher's."},
	{"fusilli/internal/process.Translate", Waiting, "The translator's."},
	{"(*fusilli/internal/process.launcher).answered > (*fusilli/internal/process.launcher).confine", Waiting, "A launcher is confined once."},
	{"fusilli/internal/sandbox.Renounce", Waiting, "Comes before the launcher is confined."},
	{"fusilli/internal/sandbox.Enclose", Waiting, "Comes before the launcher is confined."},
	{"(*fusilli/internal/process.launcher).undo", Waiting, "Comes after the launcher could not be confined."},
	{"(*fusilli/internal/process.Thread).run > golang.org/x/sys/unix.Setns", Carrying | Waiting, "Is the first that the thread does."},
	{"github.com/vishvananda/netlink/nl.getNetlinkSocket", Carrying, "Requests are made by the socket of their rtnl.Conn."},
	{"(*github.com/vishvananda/netlink/nl.NetlinkSocket).SetExtAck", Carrying, "Requests are made by the socket of their rtnl.Conn."},
	{"time.initLocal", Carrying | Waiting, "The time zone is read before (readLate)."},
	{"(*net.UnixListener).close$1", always, "A listener that was passed on does not own its name."},
	{"(*net.ipv6ZoneCache).update", always, "Package net has UNIX sockets only."},
	{"internal/poll.newPoolPipe", always, "Package net copies nothing from socket to socket."},
	{"(*os.File).WriteTo", always, "Nothing is copied from a file."},
	{"internal/poll.dupCloseOnExecOld", always, "Is for kernels before Linux 2.6.24."},
	{"os.setStickyBit", always, "Is for other systems."},
	{"os.openFileNolog > syscall.CloseOnExec", always, "Is for other systems."},
}

// machineOnly are what a translator for a virtual machine does not do.
var machineOnly = []string{
	"fusilli/splice/", "fusilli/internal/netconf/", "fusilli/internal/process.StartThread",
	"fusilli/internal/process.awaitGone", "(*fusilli/tapio.Tap).Leave",
}

// unseen are calls that no graph shows, and rules whose arguments none does.
var unseen = map[string]string{
	"eventfd2":        "The runtime makes it when the first descriptor is polled.",
	"restart_syscall": "The kernel makes it.",
	"getrandom":       "The vDSO makes it for Go's library until it has a state.",
	"clock_gettime64": "The vDSO makes it for Go's runtime.",
	"mmap":            "The runtime's arguments are not followed.",
	"mmap2":           "The runtime's arguments are not followed.",
	"clone":           "The runtime's arguments are not followed.",
}

// inSocketcall are calls that Go's library makes by socketcall on some machines. There they are not
// missed.
var inSocketcall = []string{"bind", "listen", "connect", "accept4", "shutdown", "getsockname", "getpeername", "getsockopt", "sendto",
	"recvfrom", "sendmsg", "recvmsg", "setsockopt", "socket"}

const sysSocketcall = 102

// byRuntime are system calls that Go's runtime can make, but not in a process that has a filter:
// why.
var byRuntime = map[string]string{
	"brk":               "at the start, to find the heap of C",
	"arch_prctl":        "at the start, for the first thread",
	"sched_getaffinity": "at the start, for the number of processors; later only with updatemaxprocs=1 (main.go)",
	"uname":             "at the start, for the kernel's version",
	"openat":            "at the start, for files of the kernel's and of the control group",
	"open":              "at the start, for files of the kernel's",
	"access":            "on Android",
	"faccessat":         "on Android",
	"socket":            "on Android",
	"connect":           "on Android",
	"socketcall":        "on Android",
	"mincore":           "at the start, without an auxiliary vector",
	"eventfd2":          "when the first descriptor is polled: in a translator while it starts",
	"pipe2":             "in tests",
	"setitimer":         "for a profile",
	"timer_create":      "for a profile",
	"timer_settime":     "for a profile",
	"timer_settime64":   "for a profile",
	"timer_delete":      "for a profile",
	"kill":              "to dump core with GOTRACEBACK=crash",
	"prctl":             "to name mappings, with decoratemappings=1 (main.go)",
	"mprotect":          "to find faults of the runtime's own",
	"gettimeofday":      "where there is no clock_gettime",
	"tkill":             "never: only its number is there",
	"pselect6":          "never: only its number is there",
}

// TestWhatCanBeCalledIsAllowed compares the table with the system calls that the code can make
// (package reach), in trouble as well as without.
//
// A call that is not allowed kills the process: ask for what it tells once, while starting (Phase),
// or add it to the table if it has to be made. Entries that nothing seems to call are logged (-v):
// each is one more for an attacker. Where the graph of calls is wrong, an exception says so.
func TestWhatCanBeCalledIsAllowed(t *testing.T) {
	p, err := reach.Load("fusilli", runtime.GOARCH, dead...)
	if err != nil {
		t.Fatal(err)
	}
	names := p.Names()
	own, err := p.Runtime()
	if err != nil {
		t.Fatal(err)
	}
	var all []reach.Call
	eachList(t, func(t *testing.T, mode Mode, phase Phase) {
		made, err := p.After(part(mode, phase))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, made...)
		allowed := make(map[uint32]*call)
		for _, c := range list(mode, phase) {
			allowed[c.nr] = c
		}
		seen := make(map[uint32]bool)
		for _, c := range made {
			seen[c.Nr] = true
			switch a := allowed[c.Nr]; {
			case a == nil:
				t.Errorf("%s is not allowed, and can be called: %s", names[c.Nr], strings.Join(c.Path, " < "))
			case !a.takes(c.Args):
				t.Errorf("%s is not allowed with the arguments %v, and can be called: %s", names[c.Nr], c.Args, strings.Join(c.Path, " < "))
			}
		}
		for nr, c := range allowed {
			switch later := phase == Starting && c.phases&Carrying != 0; {
			case seen[nr], later, unseen[c.name] != "", own[nr] != "" && byRuntime[c.name] == "":
			case allowed[sysSocketcall] != nil && slices.Contains(inSocketcall, c.name):
			default:
				t.Logf("%s is allowed, and nothing seems to call it", c.name)
			}
		}
		for nr := range own {
			if allowed[nr] == nil && byRuntime[names[nr]] == "" {
				t.Errorf("%s is not allowed, and Go's runtime can call it", names[nr])
			}
		}
	})
	calls := calls()
	hasSocketcall := slices.ContainsFunc(calls, func(c call) bool { return c.nr == sysSocketcall && c.name == "socketcall" })
	for i := range calls {
		if c := &calls[i]; unseen[c.name] == "" && !(hasSocketcall && slices.Contains(inSocketcall, c.name)) {
			for _, r := range c.rules {
				r.eachValue(func(arg, v uint32, one rule) {
					if !slices.ContainsFunc(all, func(m reach.Call) bool { return m.Nr == c.nr && one.canHold(m.Args) }) {
						t.Logf("%s is allowed with %#x as argument %d, and nothing seems to call it so", c.name, v, arg)
					}
				})
			}
		}
	}
}

// part is a phase as package reach has it.
func part(mode Mode, phase Phase) reach.Phase {
	ph := reach.Phase{After: map[Phase]string{
		Starting: "fusilli/internal/sandbox.Start",
		Carrying: "fusilli/internal/sandbox.Confine",
		Waiting:  "fusilli/internal/sandbox.Wait",
	}[phase]}
	for _, e := range exceptions {
		if e.phases&phase != 0 {
			ph.Without = append(ph.Without, e.name)
		}
	}
	if mode != Pasta {
		ph.Without = append(ph.Without, machineOnly...)
	}
	if mode != Vhost {
		ph.Without = append(ph.Without, "fusilli/tapio/vhost/")
	}
	return ph
}

// takes reports whether the filter allows the call with arguments of which any can be.
func (c *call) takes(args [6]reach.Values) bool {
	return len(c.rules) == 0 || slices.ContainsFunc(c.rules, func(r rule) bool { return r.canHold(args) })
}

// canHold reports whether r can hold. What an argument is that is not known is for other tests.
func (r rule) canHold(args [6]reach.Values) bool {
	for _, c := range r {
		if v := args[c.arg]; v != nil && c.who == nobody && !slices.ContainsFunc(v, func(v uint32) bool { return slices.Contains(c.values, v&c.mask) }) {
			return false
		}
	}
	return true
}

// eachValue calls f for each value that r names of an argument, with r for this value only.
func (r rule) eachValue(f func(arg, v uint32, one rule)) {
	for i, c := range r {
		if c.who != nobody {
			continue
		}
		for _, v := range c.values {
			one := slices.Clone(r)
			one[i].values = []uint32{v}
			f(c.arg, v, one)
		}
	}
}
