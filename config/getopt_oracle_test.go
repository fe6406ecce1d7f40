package config

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The words normalise gives, and its messages, are those of the C library: getopt(1) of
// util-linux passes its arguments to getopt_long(3) and shows what that found.
func TestNormaliseAgreesWithTheCLibrary(t *testing.T) {
	path, err := exec.LookPath("getopt")
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := exec.Command(path, "-T").Run(); !errors.As(err, &exit) || exit.ExitCode() != 4 {
		t.Fatal("getopt is not that of util-linux")
	}
	// One spelling of each option: to getopt(1) two of them are two options. It knows none without
	// abbreviations.
	table := slices.DeleteFunc(slices.Clone(options), func(o option) bool { return o.same != "" || o.own })
	short, long := "+", ""
	for _, o := range table {
		mark := ""
		if o.arg != "" {
			mark = ":"
		}
		if o.short != "" {
			short += o.short + mark
		}
		long += "," + o.long + mark
	}

	rnd := rand.New(rand.NewPCG(1, 2)) // the same every time
	agreed, refused := 0, 0
	for range 400 {
		args := randomArgs(rnd, table)
		cmd := exec.Command(path, append([]string{"-n", "pasta", "-o", short, "-l", long[1:], "--"}, args...)...)
		cmd.Env = []string{"LC_ALL=C"}
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		runErr := cmd.Run()

		got, err := normalise(table, "pasta", args)
		var usage *UsageError
		if errors.As(err, &usage) {
			refused++
			// getopt(1) goes on after an error; we end at the first.
			first, _, _ := strings.Cut(errs.String(), "\n")
			if runErr == nil || first != usage.Text {
				t.Errorf("%q: %q, the C library says %q, %v", args, usage.Text, first, runErr)
			}
			continue
		}
		if runErr != nil {
			t.Errorf("%q: understood, the C library says %q", args, errs.String())
			continue
		}
		agreed++
		if want := fromGetopt(table, unquote(out.String())); !slices.Equal(got, want) {
			t.Errorf("%q: %q, the C library says %q", args, got, want)
		}
	}
	t.Logf("%d lines understood, %d not", agreed, refused)
	if agreed < 50 || refused < 50 {
		t.Errorf("%d lines understood and %d not: that shows little", agreed, refused)
	}
}

// randomArgs makes a command line, most of its options whole or shortened, some wrong.
func randomArgs(rnd *rand.Rand, table []option) []string {
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	value := func() string { return pick("80", "x", "-f", "--debug", "", "a=b", "--", "-", "it's", "a b") }
	var args []string
	for range 1 + rnd.IntN(3) {
		o := table[rnd.IntN(len(table))]
		switch rnd.IntN(12) {
		case 0:
			args = append(args, pick("--", "-", "ls", "--nonsense", "--no=x", "-Z", "--=", "-d-", "", "--ns", "-:"))
		case 1, 2, 3, 4:
			if o.short == "" {
				continue
			}
			word := "-" + pick("", "d", "f4", "q6d") + o.short
			if o.arg != "" {
				word += pick("", "80", "=80", "f")
				if rnd.IntN(6) > 0 {
					args = append(args, word, value())
					continue
				}
			}
			args = append(args, word)
		default:
			word := "--" + o.long[:len(o.long)-rnd.IntN(min(4, len(o.long)))]
			if o.arg != "" && rnd.IntN(6) > 0 {
				if rnd.IntN(2) == 0 {
					args = append(args, word, value())
					continue
				}
				word += "=" + value()
			} else if rnd.IntN(20) == 0 {
				word += "="
			}
			args = append(args, word)
		}
	}
	return args
}

// unquote takes a line of words apart as a shell does. In single quotes everything stands for
// itself, and outside them a backslash takes one character.
func unquote(line string) []string {
	var words []string
	var word strings.Builder
	in, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c != '\'':
			word.WriteByte(c)
		case c == '\'':
			quoted, in = !quoted, true
		case c == '\\':
			i++
			word.WriteByte(line[i])
			in = true
		case c == ' ' || c == '\n':
			if in {
				words = append(words, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	return words
}

// fromGetopt turns what getopt(1) found into the form of normalise.
func fromGetopt(table []option, words []string) []string {
	var out []string
	for i := 0; i < len(words); i++ {
		if words[i] == "--" {
			return append(append(out, "--"), words[i+1:]...)
		}
		name := strings.TrimLeft(words[i], "-")
		o := table[slices.IndexFunc(table, func(o option) bool {
			return o.long == name && strings.HasPrefix(words[i], "--") || o.short == name
		})]
		value := "true"
		if o.arg != "" {
			i++
			value = words[i]
		}
		out = append(out, "--"+o.long+"="+value)
	}
	return out
}
