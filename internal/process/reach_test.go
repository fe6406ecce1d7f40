package process_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestOutOfReachWhileStarting: no other process of the user may look into a launcher, a holder that
// waits, or a translator that is not ready yet.
func TestOutOfReachWhileStarting(t *testing.T) {
	if raceEnabled {
		t.Skip("a program with the race detector executes itself again, and is open until it hides")
	}
	for _, w := range identities() {
		if w.nested {
			continue // to the owner of its user namespace, which the user is, all in there is open
		}
		t.Run(w.name, func(t *testing.T) {
			b := newBed(t, w)
			p := b.shell("true")
			p.Wait = b.path("never")
			c := b.program(p)
			b.start(c)
			b.translatorOf(c)
			var pids []string
			b.eventually("launcher, holder and translator run", func() bool {
				pids = nil
				for _, pid := range append(b.children(c), b.launcher(c)) {
					pids = append(pids, strconv.Itoa(pid))
				}
				// Go looks at what pidfds can do by starting one more for a moment
				return len(pids) == 3
			})
			// Each try that succeeds says so. The last is on a process that nothing protects.
			script := `for p in "$@" $$; do
				for f in maps environ auxv; do cat /proc/$p/$f >/dev/null 2>&1 && echo $p $f; done
				for f in fd root/ cwd/; do ls /proc/$p/$f >/dev/null 2>&1 && echo $p $f; done
				for f in exe ns/net ns/user; do readlink /proc/$p/$f >/dev/null 2>&1 && echo $p $f; done
				(exec 3<>/proc/$p/mem) && echo $p mem
			done 2>/dev/null; true`
			user := *b
			if b.name == "root" {
				user.cred = identities()[0].cred // whom it becomes
			}
			got := user.run(user.command(append([]string{"sh", "-c", script, "sh"}, pids...)...))
			var own int
			for line := range strings.Lines(got.out) {
				pid, name, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch {
				case !strings.Contains(" "+strings.Join(pids, " ")+" ", " "+pid+" "):
					own++
				default:
					comm, _ := os.ReadFile("/proc/" + pid + "/comm")
					t.Errorf("%s, %s, is open to %s", pid, strings.TrimSpace(string(comm)), name)
				}
			}
			if own != 10 {
				t.Errorf("%d of 10 tries succeed where nothing is protected: %+v", own, got)
			}
		})
	}
}
