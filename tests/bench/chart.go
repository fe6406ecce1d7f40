package main

import (
	"encoding/json"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// headlines are the rows that the chart shows, a panel each.
var headlines = []struct{ row, title string }{
	{"tcp-out-1500", "TCP out, MTU 1500"},
	{"tcp-in-1500", "TCP in, MTU 1500"},
	{"udp-out", "UDP out"},
	{"tcp-rr p50", "request/response"},
	{"startup", "start"},
}

// barColours are those of the implementations, ours first.
var barColours = []color.Color{
	color.RGBA{0xb3, 0x54, 0x1e, 0xff}, color.RGBA{0x8a, 0x97, 0xa6, 0xff}, color.RGBA{0xc5, 0xcd, 0xd6, 0xff},
}

// results is what -json writes and -draw reads.
type results struct {
	About   string  `json:"about"`
	Seconds float64 `json:"seconds"`
	Rows    []*row  `json:"rows"`
}

// drawChart reads the figures in the file from and writes a chart of the headlines to the file svg.
func drawChart(from, svg string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var res results
	if err := json.Unmarshal(text, &res); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	var panels []*plot.Plot
	for _, h := range headlines {
		i := slices.IndexFunc(res.Rows, func(r *row) bool { return r.Case == h.row })
		if i < 0 {
			return fmt.Errorf("%s has no row %q", from, h.row)
		}
		p, err := panel(res.Rows[i], h.title)
		if err != nil {
			return err
		}
		panels = append(panels, p)
	}
	img := vgsvg.New(vg.Points(190*float64(len(panels))), vg.Points(210))
	tiles := draw.Tiles{Rows: 1, Cols: len(panels), PadX: vg.Points(14), PadLeft: vg.Points(8), PadRight: vg.Points(8), PadTop: vg.Points(6), PadBottom: vg.Points(4)}
	canvas := draw.New(img)
	for i, c := range plot.Align([][]*plot.Plot{panels}, tiles, canvas)[0] {
		panels[i].Draw(c)
	}
	f, err := os.Create(svg)
	if err != nil {
		return err
	}
	if _, err = img.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// panel is one row as bars, one an implementation, each with its figure above it.
func panel(r *row, title string) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = title
	p.Title.TextStyle.Font.Size = vg.Points(13)
	p.Y.Label.Text = r.Unit
	if r.Less {
		p.Y.Label.Text += " (less is better)"
	}
	p.Y.Min = 0
	var names []string
	var labels plotter.XYLabels
	for i, c := range r.Column {
		if len(c.Values) == 0 || i >= len(barColours) {
			continue
		}
		bar, err := plotter.NewBarChart(plotter.Values{c.Median}, vg.Points(30))
		if err != nil {
			return nil, err
		}
		bar.XMin = float64(len(names))
		bar.Color = barColours[i]
		bar.LineStyle.Width = 0
		p.Add(bar)
		labels.XYs = append(labels.XYs, plotter.XY{X: float64(len(names)), Y: c.Median})
		labels.Labels = append(labels.Labels, fmt.Sprintf("%.3g", c.Median))
		p.Y.Max = math.Max(p.Y.Max, c.Median*1.12)
		name := c.Name
		if i == 0 {
			name = "fusilli"
		}
		names = append(names, name)
	}
	l, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	for i := range l.TextStyle {
		l.TextStyle[i].XAlign = draw.XCenter
	}
	l.Offset.Y = vg.Points(2)
	p.Add(l)
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.6, float64(len(names))-0.4
	return p, nil
}
