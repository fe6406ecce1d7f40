package process_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/internal/process"
)

// TestAlone: without a target the translator has a user namespace of its own, the host's network
// and what it was passed, and lives as any other.
func TestAlone(t *testing.T) {
	eachIdentity(t, func(t *testing.T, b *bed) {
		secret := b.path("secret")
		if err := os.WriteFile(secret, []byte("passed on"), 0o644); err != nil {
			t.Fatal(err)
		}
		p := plan{Spec: process.Spec{Alone: true, PIDFile: b.path("pid")}, Facts: b.path("facts"), Pass: secret}
		if got := b.run(b.program(p)); got != (result{}) {
			t.Fatalf("got %+v, want nothing but status 0", got)
		}
		pid := b.pidFile(p.PIDFile)
		f := b.facts(p.Facts)
		if f.NetNS != link(t, "/proc/self/ns/net") || f.Target != "" || f.UserNS == link(t, "/proc/self/ns/user") || f.Passed != "passed on" {
			t.Errorf("translator: %+v", f)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		b.eventuallyGone(pid)
	})
}

// TestAloneForeground ends with status 0 by a signal to the launcher, and by one to the translator.
func TestAloneForeground(t *testing.T) {
	for name, toTranslator := range map[string]bool{"launcher": false, "translator": true} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, identities()[0])
			p := plan{Spec: process.Spec{Alone: true, Foreground: true, PIDFile: b.path("pid")}}
			c := b.program(p)
			b.start(c)
			b.eventually("PID file", func() bool {
				st, err := os.Stat(p.PIDFile)
				return err == nil && st.Size() > 0
			})
			pid := c.Process.Pid
			if toTranslator {
				pid = b.pidFile(p.PIDFile)
			}
			unix.Kill(pid, unix.SIGTERM)
			c.Wait()
			if got := statusOf(c.ProcessState); got != 0 {
				t.Errorf("status %d", got)
			}
		})
	}
}
