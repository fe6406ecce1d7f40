package udp

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"fusilli/tapio"
)

// TestFlowEndsWithASocketThatIsBeyondHelp: one whose every call fails would stay readable and keep
// the flow busy.
func TestFlowEndsWithASocketThatIsBeyondHelp(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		_, c := openConn(t, fam, newPeer(t, fam))
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		if err := unix.Dup3(int(null.Fd()), c.fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		c.fromHost()
		if !c.failed || c.step() {
			t.Errorf("failed: %v; the flow goes on", c.failed)
		}
	})
}

// deafLink takes nothing.
type deafLink struct{ tapio.Link }

func (deafLink) Write([]byte) error { return tapio.ErrDropped }

// TestDatagramsForAGuestThatIsDeaf are taken off the socket, or it would stay readable and keep the
// flow busy; when the guest hears again it gets what comes then.
func TestDatagramsForAGuestThatIsDeaf(t *testing.T) {
	forFamilies(t, func(t *testing.T, fam family) {
		p := newPeer(t, fam)
		b, c := openConn(t, fam, p)
		from := expect(t, p, [][]byte{[]byte("hello")})
		link := c.env.Link
		c.env.Link = deafLink{link}
		for range 5 {
			for _, d := range datagrams([]int{10, 10, 1400, 0, 700}) {
				p.WriteToUDPAddrPort(d, from)
			}
			c.fromHost()
			if n, err := unix.IoctlGetInt(c.fd, unix.SIOCINQ); n != 0 || err != nil {
				t.Fatalf("%d bytes wait in the socket, %v", n, err)
			}
		}
		if n := c.env.Counters.LinkDropped.Load(); n == 0 {
			t.Error("nothing was lost")
		}
		c.env.Link = link
		p.WriteToUDPAddrPort([]byte("again"), from)
		c.fromHost()
		if got := b.receive(); len(got) != 1 || string(got[0]) != "again" {
			t.Errorf("guest gets %q", got)
		}
	})
}
