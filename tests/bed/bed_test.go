package bed_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/tests/bed"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	inside, status, err := bed.Isolate()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !inside {
		return status
	}
	return m.Run()
}

func newBed(t *testing.T, cfg bed.Config) *bed.Bed {
	t.Helper()
	b, err := bed.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// transfer sends n bytes from host to far and returns the time between the first and the last.
func transfer(t *testing.T, b *bed.Bed, network, addr string, n int64) time.Duration {
	t.Helper()
	l, err := b.Far.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := b.Host.Dial(t.Context(), network, l.Addr().String())
		if err != nil {
			return // Accept ends with the listener
		}
		defer c.Close()
		buf := make([]byte, 128<<10)
		for left := n; left > 0; left -= int64(len(buf)) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	got, err := io.Copy(io.Discard, c)
	if err != nil || got != n-1 {
		t.Fatalf("received %d of %d bytes: %v", got+1, n, err)
	}
	return time.Since(start)
}

func TestBedCarriesBothFamilies(t *testing.T) {
	b := newBed(t, bed.Config{MTU: 9000})
	transfer(t, b, "tcp", bed.FarAddr4+":0", 1<<20)
	transfer(t, b, "tcp", "["+bed.FarAddr6+"]:0", 1<<20)
	out, err := b.Host.Output(t.Context(), bed.Nobody, "ip", "-br", "link", "show", "h0")
	if err != nil || !strings.Contains(out, "UP") {
		t.Errorf("ip link = %q, %v", out, err)
	}
}

// cpu is the time the calling process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func TestLinkKeepsRateAndDelay(t *testing.T) {
	const size = 64 << 20
	rate := 900e6
	b := newBed(t, bed.Config{Link: &bed.LinkConfig{Rate: rate, Delay: 200 * time.Microsecond}})
	before := cpu(t)
	took := transfer(t, b, "tcp4", bed.FarAddr4+":0", size)
	used := cpu(t) - before
	// 1448 bytes of data in a frame of 1514.
	want := time.Duration(size * 8 / rate * 1514 / 1448 * 1e9)
	t.Logf("%d MiB in %v, ideal %v, %v of CPU for link, sender and receiver", size>>20, took, want, used)
	if took < want*97/100 || took > 20*want { // slower only on a busy machine
		t.Errorf("took %v, want about %v", took, want)
	}

	out, err := b.Host.Output(t.Context(), bed.Root, "ping", "-q", "-c", "50", "-i", "0.002", bed.FarAddr4)
	if err != nil {
		t.Fatal(err)
	}
	var lo, avg, hi float64
	_, line, _ := strings.Cut(out, "mdev = ")
	if _, err := fmt.Sscanf(line, "%f/%f/%f", &lo, &avg, &hi); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	t.Logf("round trip %.3f/%.3f/%.3f ms", lo, avg, hi)
	if lo < 0.4 {
		t.Errorf("shortest round trip %v ms, want at least 0.4", lo)
	}
}

func TestLinkLosesFrames(t *testing.T) {
	b := newBed(t, bed.Config{Link: &bed.LinkConfig{Loss: 0.3}})
	out, err := b.Host.Output(t.Context(), bed.Root, "ping", "-q", "-c", "300", "-i", "0.002", "-W", "0.02", bed.FarAddr4)
	if err != nil {
		t.Fatal(err)
	}
	var loss float64
	for _, f := range strings.Split(out, ", ") {
		fmt.Sscanf(f, "%f%% packet loss", &loss)
	}
	if loss < 30 || loss > 75 { // 51% of the round trips
		t.Errorf("loss %v%%, want about 51%%", loss)
	}
}

func TestTargetIsAnUnprivilegedUsersNamespace(t *testing.T) {
	b := newBed(t, bed.Config{})
	target, err := b.Target(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = target.Do(func() error {
		ifs, err := net.Interfaces()
		if err == nil && (len(ifs) != 1 || ifs[0].Name != "lo") {
			err = fmt.Errorf("interfaces %v", ifs)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	cmd := target.Enter("id", "-u")
	var out strings.Builder
	cmd.Stdout = &out
	if err := b.Host.Start(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "0\n" {
		t.Errorf("id -u in the target = %q, %v", out.String(), err)
	}
	u, err := bed.Tree(target.PID)
	if err != nil || u.Threads != 1 || u.FDs < 3 || u.RSS == 0 {
		t.Errorf("Tree = %+v, %v", u, err)
	}
	target.Close()
	if _, err := bed.Tree(target.PID); err == nil {
		t.Error("the holder outlives the target")
	}
}

func TestResolverIsTheFarPeer(t *testing.T) {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skip(err)
	}
	if string(b) != "nameserver "+bed.FarAddr4+"\n" {
		t.Errorf("resolv.conf = %q", b)
	}
}

func TestNothingOutlivesTheProgram(t *testing.T) {
	if os.Getenv("BED_TEST_CRASH") != "" {
		t.Skip("this is the second run")
	}
	// A sleeping process in the PID namespace of a run that ends by a panic.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=TestCrash$")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "BED_TEST_CRASH=1"}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: on purpose") {
		t.Fatalf("%v: %s", err, out)
	}
	if pids, err := bed.Alive("bedsleeper"); err != nil || len(pids) > 0 {
		t.Errorf("alive: %v, %v", pids, err)
	}
}

// TestCrash is run by TestNothingOutlivesTheProgram.
func TestCrash(t *testing.T) {
	if os.Getenv("BED_TEST_CRASH") == "" {
		t.Skip("run by another test")
	}
	b := newBed(t, bed.Config{})
	cmd := exec.Command("sh", "-c", "printf bedsleeper >/proc/self/comm; echo; read x <&3")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.ExtraFiles = []*os.File{r}
	if err := b.Host.Start(bed.Nobody, cmd); err != nil {
		t.Fatal(err)
	}
	err = bed.Wait(t.Context(), "bedsleeper", func() (bool, error) {
		pids, err := bed.Alive("bedsleeper")
		return len(pids) == 1, err
	})
	if err != nil {
		t.Fatal(err)
	}
	panic("on purpose")
}
