package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// row collects the figures of one metric of one case.
type row struct {
	Case   string `json:"case"` // with the metric, where there are several
	Unit   string `json:"unit"`
	Less   bool   `json:"less_is_better"`
	Column []cell `json:"implementations"`
}

// cell is one implementation's part of a row.
type cell struct {
	Name     string    `json:"name"`
	Values   []float64 `json:"values"`
	Median   float64   `json:"median"`
	CPU      float64   `json:"cpu_seconds"`               // median of the runs
	CPUPerGB float64   `json:"cpu_seconds_per_gb"`        // of all runs; 0 where it means nothing
	Ratio    float64   `json:"ours_better_by,omitempty"`  // factor, against the first implementation
	CPURatio float64   `json:"ours_cheaper_by,omitempty"` // same for CPUPerGB
	Error    string    `json:"error,omitempty"`           // of the last run that failed

	cpus  []float64
	bytes int64
}

// table is the result of a benchmark. add is called by one goroutine.
type table struct {
	impls []impl
	rows  []*row
}

// row returns the row of a case's metric, made at first use.
func (t *table) row(name string, f figure) *row {
	if f.metric != "" {
		name += " " + f.metric
	}
	if i := slices.IndexFunc(t.rows, func(r *row) bool { return r.Case == name }); i >= 0 {
		r := t.rows[i]
		if f.unit != "" {
			r.Unit, r.Less = f.unit, f.less
		}
		return r
	}
	r := &row{Case: name, Unit: f.unit, Less: f.less}
	for _, im := range t.impls {
		r.Column = append(r.Column, cell{Name: im.name})
	}
	t.rows = append(t.rows, r)
	return r
}

// add notes what run of implementation i gave.
func (t *table) add(c benchCase, i int, figures []figure, err error) {
	if err != nil {
		t.row(c.name, figure{}).Column[i].Error = err.Error()
		return
	}
	for _, f := range figures {
		cell := &t.row(c.name, f).Column[i]
		cell.Values = append(cell.Values, f.value)
		cell.cpus = append(cell.cpus, f.cpu.Seconds())
		cell.bytes += f.bytes
	}
}

// finish computes medians and ratios.
func (t *table) finish() {
	for _, r := range t.rows {
		for i := range r.Column {
			c := &r.Column[i]
			if len(c.Values) == 0 {
				continue
			}
			c.Median = median(slices.Clone(c.Values))
			if c.bytes > 0 {
				for _, s := range c.cpus {
					c.CPUPerGB += s
				}
				c.CPUPerGB /= float64(c.bytes) / 1e9
			}
			c.CPU = median(c.cpus)
			if first := r.Column[0]; i > 0 && len(first.Values) > 0 {
				c.Ratio = better(first.Median, c.Median, r.Less)
				c.CPURatio = better(first.CPUPerGB, c.CPUPerGB, true)
			}
		}
	}
}

// better is the factor by which ours is better; 0 where one is not known.
func better(ours, theirs float64, less bool) float64 {
	if ours <= 0 || theirs <= 0 {
		return 0
	}
	if less {
		return theirs / ours
	}
	return ours / theirs
}

// text is what stands in a column.
func (c cell) text(r *row) string {
	switch {
	case len(c.Values) == 0 && c.Error != "":
		return "failed"
	case len(c.Values) == 0:
		return "-"
	case c.CPUPerGB > 0:
		return fmt.Sprintf("%.2f %s, %.2f s, %.2f s/GB", c.Median, r.Unit, c.CPU, c.CPUPerGB)
	case c.CPU > 0:
		return fmt.Sprintf("%.1f %s, %.2f s", c.Median, r.Unit, c.CPU)
	}
	return fmt.Sprintf("%.1f %s", c.Median, r.Unit)
}

func (c cell) ratio() string {
	switch {
	case c.Ratio == 0:
		return "-"
	case c.CPURatio == 0:
		return fmt.Sprintf("%.2fx", c.Ratio)
	}
	return fmt.Sprintf("%.2fx, CPU %.2fx", c.Ratio, c.CPURatio)
}

// lines returns the heading and the rows as text.
func (t *table) lines() [][]string {
	head := []string{"case"}
	for _, im := range t.impls {
		head = append(head, im.name)
	}
	for _, im := range t.impls[1:] {
		head = append(head, "vs "+im.name)
	}
	lines := [][]string{head}
	for _, r := range t.rows {
		line := []string{r.Case}
		for _, c := range r.Column {
			line = append(line, c.text(r))
		}
		for _, c := range r.Column[1:] {
			line = append(line, c.ratio())
		}
		lines = append(lines, line)
	}
	return lines
}

func (t *table) write(w io.Writer, markdown bool) error {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	for i, line := range t.lines() {
		if markdown {
			fmt.Fprint(tw, "| ")
		}
		for j, s := range line {
			fmt.Fprint(tw, s, "\t")
			if markdown {
				fmt.Fprint(tw, "| ")
			} else if j < len(line)-1 {
				fmt.Fprint(tw, "  ")
			}
		}
		fmt.Fprintln(tw)
		if markdown && i == 0 {
			for range line {
				fmt.Fprint(tw, "|---\t")
			}
			fmt.Fprintln(tw, "|")
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, r := range t.rows {
		for _, c := range r.Column {
			if c.Error != "" {
				fmt.Fprintf(w, "\n%s, %s: %s\n", r.Case, c.Name, c.Error)
			}
		}
	}
	return nil
}

func (t *table) json(w io.Writer, about string, took time.Duration) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(results{about, took.Seconds(), t.rows})
}
