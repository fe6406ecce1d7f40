package config

import "github.com/xrash/smetrics"

// nearest returns the option of mode, with dashes, whose name needs the fewest changes to be name:
// one for every four letters at most, and two of short names. Empty: none is that near.
func nearest(name string, mode Mode) string {
	if name == "" {
		return ""
	}
	best, found := max(2, len(name)/4)+1, ""
	for i := range options {
		o := &options[i]
		if o.help == "" || !o.only.includes(mode, mode == Passt) {
			continue
		}
		// Exchanging a letter costs as much as leaving it out and putting another one in.
		if d := smetrics.WagnerFischer(name, o.long, 1, 1, 2); d < best {
			best, found = d, "--"+o.long
		}
	}
	return found
}
