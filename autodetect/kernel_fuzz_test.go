package autodetect

import (
	"io/fs"
	"testing"
	"testing/fstest"
)

// everywhere has one text in each file.
type everywhere struct{ fstest.MapFS }

func (e everywhere) Open(string) (fs.File, error) { return e.MapFS.Open("f") }

// FuzzReadKernel: whatever sysctls say, the values are ones that the program can work with.
func FuzzReadKernel(f *testing.F) {
	for _, s := range []string{"", "6\n", "-1", "0", "1024\t65535\n", "60999 32768", "1 0", "0 4294967295", "2147483648", "99999999999999999999", "1 2 3", " 7 "} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k := ReadKernel(everywhere{fstest.MapFS{"f": {Data: b}}})
		if k.TCPSynRetries < 1 || k.TCPSynRetries > 255 || k.TCPSynLinearTimeouts < 0 || k.TCPSynLinearTimeouts > 255 ||
			k.TCPRTOMax <= 0 || k.UDPTimeout <= 0 || k.UDPStreamTimeout <= 0 || k.UnprivilegedPort < 0 || k.UnprivilegedPort > 65536 ||
			k.LocalPorts.Low > k.LocalPorts.High || (k.LocalPorts.Low == 0) != (k.LocalPorts == PortRange{}) {
			t.Errorf("%q: %+v", b, k)
		}
	})
}
