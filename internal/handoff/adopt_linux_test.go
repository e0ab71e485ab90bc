package handoff

import (
	"net"
	"syscall"
	"testing"
)

func TestMessengerIsKnownByItsSocket(t *testing.T) {
	t.Parallel()
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(ends[:])
	for _, fd := range ends {
		if !isPaired(fd) {
			t.Error("an end of a socket pair is not taken for one")
		}
	}

	for network, addr := range map[string]string{"unix": t.TempDir() + "/socket", "tcp": "127.0.0.1:0"} {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, server := pair(t, l)
		for name, c := range map[string]any{"listener": l, "client": client, "server": server} {
			if err := withFDs([]syscall.Conn{c.(syscall.Conn)}, func(fds []int) error {
				if isPaired(fds[0]) {
					t.Errorf("%s: a %s is taken for an end of a socket pair", network, name)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	}
	if isPaired(1 << 20) {
		t.Error("a descriptor that is not open is taken for an end of a socket pair")
	}
}
