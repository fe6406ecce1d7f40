package forward

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fusilli/config"
)

// TestManyConnectAtOnce: connections that come faster than they are accepted wait, and nobody asks
// twice.
func TestManyConnectAtOnce(t *testing.T) {
	p := newPlace(t, nil)
	fd := -1
	err := p.host.Do(func() (err error) {
		o := opening{v4: true, v6: true}
		fd, _, err = o.listen(&config.Rule{Protocol: config.TCP}, 80)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 1000 {
		c, err := p.host.Dial(ctx, "tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
	}
}
