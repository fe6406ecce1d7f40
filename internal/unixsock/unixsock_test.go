package unixsock

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f, err := Listen("guest", path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if f.Name() != "guest" {
		t.Errorf("name %q", f.Name())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := Listen("guest", path, 0); err == nil || err.Error() != "Socket path "+path+" already in use" {
		t.Errorf("second Listen = %v", err)
	}
	f.Close()
	g, err := Listen("guest", path, 0) // the file is there still
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
}

func TestListenSparesFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("guest", path, 0); err == nil || err.Error() != "Failed to bind UNIX domain socket: Address already in use" {
		t.Errorf("Listen = %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "x" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if _, err := Listen("guest", filepath.Join(path, "s"), 0); err == nil {
		t.Error("listens in a file")
	}
	missing := filepath.Join(t.TempDir(), "no", "s")
	if _, err := Listen("guest", missing, 0); err == nil || !strings.HasPrefix(err.Error(), "Failed to bind UNIX domain socket") {
		t.Errorf("Listen = %v", err)
	}
}

func TestListenFirst(t *testing.T) {
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	for i := 1; i <= 3; i++ {
		f, p, err := listenFirst("guest", path)
		if err != nil || p != path(i) {
			t.Fatalf("%q, %v", p, err)
		}
		defer f.Close()
	}
	for i := 4; i <= maxProbe; i++ {
		if err := os.Mkdir(path(i), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := listenFirst("guest", path); err == nil || !strings.HasPrefix(err.Error(), "Failed to bind UNIX domain socket") {
		t.Errorf("none is free: %v", err)
	}
	if DefaultPath(99) != "/tmp/passt_99.socket" {
		t.Error(DefaultPath(99))
	}
}
