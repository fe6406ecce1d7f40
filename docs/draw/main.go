// Command draw writes the picture of where packets go that the README shows.
//
//	go run ./docs/draw docs/packets.svg
//
// The picture is plain SVG: rectangles, arrows and text at places given here, so that a change of
// the design is a change of a few lines of this file.
package main

import (
	"fmt"
	"html"
	"io"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: draw FILE.svg")
		os.Exit(2)
	}
	f, err := os.Create(os.Args[1])
	if err == nil {
		if err = packets(f); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "draw:", err)
		os.Exit(1)
	}
}

// colours of the three places code runs in, and of the lines.
const (
	guestFill  = "#e8f1fb"
	oursFill   = "#fdf3e1"
	hostFill   = "#eaf5ea"
	boxFill    = "#ffffff"
	stroke     = "#47525e"
	packetLine = "#b3541e"
	spliceLine = "#2f6f4f"
)

// canvas collects elements. The first error of the writer sticks.
type canvas struct {
	w   io.Writer
	err error
}

func (c *canvas) put(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(c.w, format+"\n", args...)
	}
}

// area is a place with a title: the guest, the translator, the host.
func (c *canvas) area(x, y, w, h int, fill, title string) {
	c.put(`<rect x="%d" y="%d" width="%d" height="%d" rx="10" fill="%s" stroke="none"/>`, x, y, w, h, fill)
	c.put(`<text x="%d" y="%d" class="title">%s</text>`, x+w/2, y+24, html.EscapeString(title))
}

// box is a part with one or two lines of text.
func (c *canvas) box(x, y, w, h int, lines ...string) {
	c.put(`<rect x="%d" y="%d" width="%d" height="%d" rx="5" fill="%s" stroke="%s"/>`, x, y, w, h, boxFill, stroke)
	top := y + h/2 + 5 - 9*(len(lines)-1)
	for i, line := range lines {
		class := "name"
		if i > 0 {
			class = "note"
		}
		c.put(`<text x="%d" y="%d" class="%s">%s</text>`, x+w/2, top+18*i, class, html.EscapeString(line))
	}
}

// arrow is a line from one point to another with heads at one or both ends.
func (c *canvas) arrow(x1, y1, x2, y2 int, colour string, both bool) {
	marker := `marker-end="url(#end)"`
	if both {
		marker += ` marker-start="url(#begin)"`
	}
	c.put(`<path d="M%d %d L%d %d" stroke="%s" stroke-width="2" fill="none" %s/>`, x1, y1, x2, y2, colour, marker)
}

func (c *canvas) label(x, y int, text string) {
	c.put(`<text x="%d" y="%d" class="note">%s</text>`, x, y, html.EscapeString(text))
}

// packets draws the life of a packet, from a program in the guest to the host's network.
func packets(w io.Writer) error {
	c := &canvas{w: w}
	c.put(`<svg xmlns="http://www.w3.org/2000/svg" width="960" height="430" viewBox="0 0 960 430" role="img" aria-label="How packets travel between the guest and the host">`)
	c.put(`<style>text{font-family:sans-serif;text-anchor:middle;fill:#1f2933}.title{font-size:16px;font-weight:bold}.name{font-size:14px}.note{font-size:12px;fill:#47525e}</style>`)
	c.put(`<defs><marker id="end" markerWidth="6" markerHeight="6" viewBox="0 0 8 8" refX="7" refY="4" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="%s"/></marker>`, stroke)
	c.put(`<marker id="begin" markerWidth="6" markerHeight="6" viewBox="0 0 8 8" refX="1" refY="4" orient="auto"><path d="M8 0 L0 4 L8 8 z" fill="%s"/></marker></defs>`, stroke)

	c.area(10, 10, 220, 410, guestFill, "guest")
	c.area(245, 10, 460, 410, oursFill, "translator (fusilli)")
	c.area(720, 10, 230, 410, hostFill, "host")

	c.box(40, 60, 160, 46, "programs")
	c.box(40, 150, 160, 56, "kernel", "TCP, UDP, ICMP")
	c.box(40, 250, 160, 56, "tap or virtio-net", "frames of up to 64 KiB")
	c.box(40, 350, 160, 46, "loopback sockets")
	c.arrow(120, 106, 120, 150, packetLine, true)
	c.arrow(120, 206, 120, 250, packetLine, true)

	c.box(270, 250, 110, 56, "reader", "one a queue")
	c.box(270, 150, 110, 56, "services", "ARP, NDP, DHCP")
	c.box(425, 60, 120, 46, "flow table")
	c.box(575, 150, 110, 46, "flow actor", "TCP")
	c.box(575, 205, 110, 46, "flow actor", "UDP")
	c.box(575, 260, 110, 46, "flow actor", "ICMP echo")
	c.box(425, 350, 140, 46, "splice", "socket to socket")

	c.arrow(200, 270, 270, 270, packetLine, false)
	c.arrow(325, 250, 325, 206, packetLine, false)
	c.arrow(365, 250, 470, 106, stroke, true)
	c.arrow(380, 268, 575, 182, packetLine, false)
	c.arrow(380, 276, 575, 232, packetLine, false)
	c.arrow(380, 284, 575, 276, packetLine, false)
	c.label(480, 300, "mailboxes: runs of frames")
	// Actors and services write to the link themselves.
	c.put(`<path d="M630 306 L630 325 L225 325 L225 295 L200 295" stroke="%s" stroke-width="2" fill="none" marker-end="url(#end)"/>`, packetLine)
	c.label(430, 340, "flows write frames to the link themselves")

	c.box(745, 150, 180, 46, "TCP socket")
	c.box(745, 205, 180, 46, "UDP socket")
	c.box(745, 260, 180, 46, "ping socket")
	c.box(745, 60, 180, 46, "network")
	c.box(745, 350, 180, 46, "loopback sockets")
	c.arrow(685, 173, 745, 173, packetLine, true)
	c.arrow(685, 228, 745, 228, packetLine, true)
	c.arrow(685, 283, 745, 283, packetLine, true)
	c.arrow(835, 150, 835, 106, packetLine, true)
	c.arrow(200, 373, 425, 373, spliceLine, true)
	c.arrow(565, 373, 745, 373, spliceLine, true)
	c.put(`</svg>`)
	return c.err
}
