//go:build unix

package handoff

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func TestSocketsAreRecognized(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	closers := []io.Closer{}
	defer func() {
		for _, c := range closers {
			c.Close()
		}
	}()
	listen := func(network, address string) syscall.Conn {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closers = append(closers, l)
		return l.(syscall.Conn)
	}
	packet := func(network, address string) syscall.Conn {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closers = append(closers, c)
		return c.(syscall.Conn)
	}
	tcp := listen("tcp", "127.0.0.1:0")
	client, _ := tcpPair(t, tcp.(net.Listener))
	files, _ := newFiles(t, 1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	directory, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	closers = append(closers, r, w, null, directory)

	for _, test := range []struct {
		what string
		conn syscall.Conn
		kind Kind
		open any
		says string
	}{
		{"tcp", tcp, Listener, &net.TCPListener{}, "a listening socket"},
		{"unix", listen("unix", filepath.Join(dir, "stream")), Listener, &net.UnixListener{}, "a listening socket"},
		{"unixpacket", listen("unixpacket", filepath.Join(dir, "packet")), Listener, &net.UnixListener{}, "a listening socket"},
		{"udp", packet("udp", "127.0.0.1:0"), Packet, &net.UDPConn{}, "a datagram socket"},
		{"unixgram", packet("unixgram", filepath.Join(dir, "gram")), Packet, &net.UnixConn{}, "a datagram socket"},
		{"a connection", client, File, &os.File{}, "a socket that does not listen"},
		{"a file", files[0], File, &os.File{}, "a file"},
		{"a pipe", r, File, &os.File{}, "a pipe"},
		{"a device", null, File, &os.File{}, "a device"},
		{"a directory", directory, File, &os.File{}, "a directory"},
	} {
		t.Run(test.what, func(t *testing.T) {
			checkLeaks(t)
			var fd int
			if err := withFDs([]syscall.Conn{test.conn}, func(fds []int) (err error) {
				fd, err = syscall.Dup(fds[0])
				return err
			}); err != nil {
				t.Fatal(err)
			}
			syscall.CloseOnExec(fd)
			if test.kind != File { // as a stranger may have left it
				if err := syscall.SetNonblock(fd, false); err != nil {
					t.Fatal(err)
				}
			}
			s := &Socket{}
			s.open(fd)
			defer s.Open.Close()
			if s.Kind != test.kind || reflect.TypeOf(s.Open) != reflect.TypeOf(test.open) {
				t.Errorf("it is a %s, %T, want a %s, %T", s.Kind, s.Open, test.kind, test.open)
			}
			if got := s.Describe(); got != test.says {
				t.Errorf("it is %s, want %s", got, test.says)
			}
			if (s.Listener() != nil) != (test.kind == Listener) || (s.PacketConn() != nil) != (test.kind == Packet) ||
				(s.File() != nil) != (test.kind == File) || (s.Addr() != nil) != (test.kind != File) {
				t.Errorf("listener %v, packet connection %v, file %v, address %v", s.Listener(), s.PacketConn(), s.File(), s.Addr())
			}
			withFDs([]syscall.Conn{s.conn()}, func(fds []int) error {
				cloexec, nonblocking := fdFlags(t, fds[0])
				if !cloexec || test.kind != File && !nonblocking {
					t.Errorf("close-on-exec %v, non-blocking %v", cloexec, nonblocking)
				}
				return nil
			})
		})
	}
}

func TestDescriptorThatIsNotOpenIsDescribed(t *testing.T) {
	s := &Socket{}
	s.open(1 << 20)
	if got := s.Describe(); !strings.Contains(got, syscall.EBADF.Error()) {
		t.Errorf("it is %s, want %v", got, syscall.EBADF)
	}
}

func TestInheritedNumbersAreRemembered(t *testing.T) {
	for index, want := range map[int]int{-1: -1, 0: 3, 41: 44} {
		if got := (&Socket{index: index}).Descriptor(); got != want {
			t.Errorf("place %d is descriptor %d, want %d", index, got, want)
		}
	}
}

// Two sockets of one address, by SO_REUSEPORT, are two.
func TestSocketsAreToldApart(t *testing.T) {
	a, b := listenTCP(t), listenTCP(t)
	f, err := a.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first, err := identify(a)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identify(f); err != nil || id != first {
		t.Errorf("a copy of the descriptor is another socket: %+v, %+v, %v", first, id, err)
	}
	if id, err := identify(b); err != nil || id == first {
		t.Errorf("another listener is the same socket: %+v, %v", id, err)
	}
	a.Close()
	if _, err := identify(a); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed one: %v, want net.ErrClosed", err)
	}
}
