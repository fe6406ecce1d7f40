package main

import (
	"bytes"
	"os"
	"testing"
)

// The picture in the tree is the one this program draws.
func TestPictureIsUpToDate(t *testing.T) {
	var b bytes.Buffer
	if err := packets(&b); err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("../packets.svg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), have) {
		t.Error("docs/packets.svg is out of date: go run ./docs/draw docs/packets.svg")
	}
}
