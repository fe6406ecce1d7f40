package config

import (
	"fmt"
	"slices"
	"strings"
)

// normalise rewrites args, a command line without argv[0], from the syntax of getopt_long(3)
// to words of the form --long=value (--long=true for an option without a value), followed by
// "--" and the words that are no options.
//
// On an error, the words are those before the place of the error, without "--": what they ask
// for comes first. The error is a *UsageError without a mode.
func normalise(table []option, argv0 string, args []string) ([]string, error) {
	g := getopt{table: table, argv0: argv0, rest: args}
	for len(g.rest) > 0 {
		word := g.rest[0]
		if len(word) < 2 || word[0] != '-' {
			break // "", "-", or the first word that is no option
		}
		g.rest = g.rest[1:]
		if word == "--" {
			break
		}
		var err error
		if strings.HasPrefix(word, "--") {
			err = g.long(word[2:])
		} else {
			err = g.cluster(word[1:])
		}
		if err != nil {
			return g.out, err
		}
	}
	return append(append(g.out, "--"), g.rest...), nil
}

// Flag is an option of a program of ours that is neither pasta nor passt.
type Flag struct {
	Long, Short string // Short is one letter, or empty
	Arg         bool   // it takes a value
}

// Given is an option of a command line, by its long name, and its value.
type Given struct{ Long, Value string }

// Getopt reads args, a command line without argv[0], as getopt_long(3) does up to the first word
// that is no option. It returns the options in their order, and the words that are none. With an
// error, a *UsageError without a mode, they are those before the place of the error.
func Getopt(flags []Flag, argv0 string, args []string) (given []Given, operands []string, err error) {
	table := make([]option, len(flags))
	for i, f := range flags {
		table[i] = option{long: f.Long, short: f.Short}
		if f.Arg {
			table[i].arg = "VALUE"
		}
	}
	words, err := normalise(table, argv0, args)
	for i, w := range words {
		if w == "--" {
			operands = words[i+1:]
			break
		}
		name, value, _ := strings.Cut(w[len("--"):], "=")
		given = append(given, Given{name, value})
	}
	return given, operands, err
}

// getopt is the state of one normalise.
type getopt struct {
	table []option
	argv0 string
	rest  []string // words not yet looked at
	out   []string
}

// long reads one long option, word without its dashes.
func (g *getopt) long(word string) error {
	name, value, attached := strings.Cut(word, "=")
	o, err := g.find(name, word)
	if err != nil {
		return err
	}
	switch {
	case o.arg == "" && attached:
		return g.fail("option '--%s' doesn't allow an argument", o.long)
	case o.arg != "" && !attached:
		if len(g.rest) == 0 {
			return g.fail("option '--%s' requires an argument", o.long)
		}
		value, g.rest = g.rest[0], g.rest[1:]
	}
	g.put(o, value)
	return nil
}

// find returns the option called name, or the only one that name abbreviates. word is what
// the messages show.
func (g *getopt) find(name, word string) (*option, error) {
	var found []*option
	for i := range g.table {
		o := &g.table[i]
		if o.long == name {
			return o, nil
		}
		// Two spellings of one option are not in each other's way.
		if !o.own && strings.HasPrefix(o.long, name) && (len(found) == 0 || found[0].name() != o.name()) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		err := g.fail("unrecognized option '--%s'", word)
		err.unknown = name
		return nil, err
	case 1:
		return found[0], nil
	}
	var list strings.Builder
	for _, o := range found {
		fmt.Fprintf(&list, " '--%s'", o.long)
	}
	return nil, g.fail("option '--%s' is ambiguous; possibilities:%s", word, list.String())
}

// cluster reads the letters of one word, without its dash. A letter that takes a value ends
// it: the value is what is left of the word or, if nothing is, the next word.
func (g *getopt) cluster(letters string) error {
	for len(letters) > 0 {
		letter := letters[:1] // bytes, as in C: an option's letter is ASCII
		letters = letters[1:]
		i := slices.IndexFunc(g.table, func(o option) bool { return o.short == letter })
		if i < 0 {
			return g.fail("invalid option -- '%s'", letter)
		}
		o := &g.table[i]
		if o.arg == "" {
			g.put(o, "")
			continue
		}
		value := letters
		if value == "" {
			if len(g.rest) == 0 {
				return g.fail("option requires an argument -- '%s'", letter)
			}
			value, g.rest = g.rest[0], g.rest[1:]
		}
		g.put(o, value)
		return nil
	}
	return nil
}

func (g *getopt) put(o *option, value string) {
	if o.arg == "" {
		value = "true"
	}
	g.out = append(g.out, "--"+o.name()+"="+value)
}

func (g *getopt) fail(format string, args ...any) *UsageError {
	return &UsageError{Text: g.argv0 + ": " + fmt.Sprintf(format, args...)}
}
