package e2e

import (
	"cmp"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"fusilli/internal/process"
	"fusilli/tests/bed"
)

// inForce is what -d says about a translator's confinement.
type inForce struct {
	Root         string `json:"root"`
	Capabilities string `json:"capabilities"`
	Calls        int    `json:"system_calls"`
	Others       string `json:"others"`
}

// capSets are what the names mean in /proc.
var capSets = map[string]string{"none": "0000000000000000", "CAP_NET_BIND_SERVICE": "0000000000000400"}

// launcherCaps are the capabilities that a launcher may have.
const launcherCaps = 1<<1 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<12 | 1<<18 | 1<<19 | 1<<21 | 1<<31

// TestDebugSaysWhatIsInForce compares what is said with what /proc shows, in each mode, for whoever
// starts the program.
func TestDebugSaysWhatIsInForce(t *testing.T) {
	t.Parallel()
	if raceEnabled {
		t.Skip("a program with the race detector is linked with a C library, which is not confined")
	}
	asRoot(t)
	passt, err := bed.Provide(program, "passt")
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []struct {
		name   string
		user   bed.User
		before []string // the program
		runAs  []string
	}{
		{"unprivileged user", bed.Nobody, nil, nil},
		{"root", bed.Root, nil, []string{"--runas", "0"}},
		{"root in a user namespace", bed.Nobody, []string{"unshare", "-r"}, nil},
	} {
		for _, mode := range []struct {
			name string
			args []string
			root string // "" is the usual one
		}{
			{"command", []string{program, "--config-net", "-d", "-t", "none", "-T", "none", "-u", "none", "-U", "none"}, "pivot_root"},
			{"automatic forwarding", []string{program, "--config-net", "-d"}, "pivot_root"},
			{"virtual machine", []string{passt, "-f", "-d"}, "pivot_root"},
		} {
			t.Run(who.name+", "+mode.name, func(t *testing.T) {
				t.Parallel()
				b := newBed(t, defaultBed)
				args := append(append(append([]string{}, who.before...), mode.args...), who.runAs...)
				if mode.args[0] == passt {
					args = append(args, "-s", filepath.Join(scratch(t), "socket"))
				} else {
					args = append(args, "--", "sleep", "1000")
				}
				p, err := b.Host.Spawn(who.user, exec.Command(args[0], args[1:]...))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { p.Stop(limit) })
				c := confinement{childOf(t, p.PID()), t}
				var said inForce
				waitFor(t, "what is in force", func() bool {
					_, rest, found := strings.Cut(p.Stderr(), ": confined ")
					line, _, whole := strings.Cut(rest, "\n")
					return found && whole && json.Unmarshal([]byte(line), &said) == nil
				})
				others := cmp.Or(os.Getenv(process.FilterVariable), "kill")
				caps, known := capSets[said.Capabilities]
				if !known {
					t.Errorf("capabilities %q", said.Capabilities)
				}
				c.threads(caps)
				if entries, err := os.ReadDir("/proc/" + strconv.Itoa(c.pid) + "/root/"); err != nil || len(entries) > 0 || said.Root != mode.root {
					t.Errorf("root %s has %v, %v", said.Root, entries, err)
				}
				if said.Calls == 0 || said.Calls >= 60 || said.Others != others {
					t.Errorf("%d system calls, others %s", said.Calls, said.Others)
				}
				launcher := confinement{p.PID(), t}
				launcher.waits()
				for line := range strings.Lines(launcher.read("status")) {
					value, is := strings.CutPrefix(line, "CapPrm:\t")
					if n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); is && (err != nil || n&^launcherCaps != 0) {
						t.Errorf("launcher: %s, %v", line, err)
					}
				}
			})
		}
	}
}
