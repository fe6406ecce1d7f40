package actors

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"fusilli/tapio"
)

// BenchmarkLossyLink moves 1 MiB over a link that loses frames, and now and then has one overtake
// another.
func BenchmarkLossyLink(b *testing.B) {
	const n = 1 << 20
	for _, lose := range []float64{0, 0.01, 0.02, 0.05} {
		for _, out := range []bool{true, false} {
			name := fmt.Sprintf("in-%v%%", lose*100)
			if out {
				name = fmt.Sprintf("out-%v%%", lose*100)
			}
			b.Run(name, func(b *testing.B) {
				b.SetBytes(n)
				bed := newBed(b, options{faults: tapio.Faults{Lose: lose, Reorder: lose, Seed: 1}})
				l := listen(b, families[0])
				for b.Loop() {
					g, h := bed.connect(families[0], l)
					from, to := halfConn(g), halfConn(h)
					if !out {
						from, to = to, from
					}
					l.SetDeadline(time.Now().Add(patience))
					var all errgroup.Group
					all.Go(func() error { return send(from, n, 1) })
					all.Go(func() error { return receive(to, n, 1) })
					if err := all.Wait(); err != nil {
						b.Fatal(err)
					}
					g.Close()
					h.Close()
				}
			})
		}
	}
}
