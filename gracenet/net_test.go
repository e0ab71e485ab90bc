//go:build unix

package gracenet_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/gracenet"
)

// patience is how long anything may take that must not take forever.
const patience = 30 * time.Second

// Programs have these signatures in variables and interfaces.
var (
	_ func(*gracenet.Net, string, string) (net.Listener, error)             = (*gracenet.Net).Listen
	_ func(*gracenet.Net, string, *net.TCPAddr) (*net.TCPListener, error)   = (*gracenet.Net).ListenTCP
	_ func(*gracenet.Net, string, *net.UnixAddr) (*net.UnixListener, error) = (*gracenet.Net).ListenUnix
	_ func(*gracenet.Net) (int, error)                                      = (*gracenet.Net).StartProcess
	_ func(*gracenet.Net, string, string) (net.PacketConn, error)           = (*gracenet.Net).ListenPacket
	_ func(*gracenet.Net, string, *os.File) error                           = (*gracenet.Net).AddFile
	_ func(*gracenet.Net, string) (*os.File, error)                         = (*gracenet.Net).File
	_ net.ListenConfig                                                      = gracenet.Net{}.ListenConfig
	_ interface {
		Listen(string, string) (net.Listener, error)
	} = &gracenet.Net{}
)

func hasIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// echo serves one connection.
func echo(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	io.Copy(c, c)
}

// reaches fails the test if nobody echoes at the address.
func reaches(t *testing.T, network, address string) {
	t.Helper()
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := []byte("echo")
	if _, err := c.Write(b); err != nil {
		t.Error(err)
		return
	}
	clear(b)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "echo" {
		t.Errorf("%s %s answers %q, %v", network, address, b, err)
	}
}

func TestListenOnEveryNetwork(t *testing.T) {
	var n gracenet.Net
	dir := t.TempDir()
	for _, test := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"},
		{"tcp", ":0"},
		{"tcp4", "127.0.0.1:0"},
		{"tcp4", ":0"},
		{"tcp6", "[::1]:0"},
		{"tcp6", ":0"},
		{"unix", filepath.Join(dir, "stream")},
		{"unixpacket", filepath.Join(dir, "packet")},
	} {
		t.Run(test.network+" "+test.address, func(t *testing.T) {
			if test.network == "tcp6" && !hasIPv6() {
				t.Skip("no IPv6 here")
			}
			l, err := n.Listen(test.network, test.address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go echo(l)
			reaches(t, test.network, l.Addr().String())
			if a, ok := l.Addr().(*net.TCPAddr); ok {
				if strings.HasSuffix(test.network, "4") && a.IP.To4() == nil || strings.HasSuffix(test.network, "6") && a.IP.To4() != nil {
					t.Errorf("%s listens on %v", test.network, a)
				}
			}
		})
	}
}

func TestListenTCP(t *testing.T) {
	var n gracenet.Net
	for _, addr := range []*net.TCPAddr{nil, {}, {IP: net.IPv4(127, 0, 0, 1)}} {
		l, err := n.ListenTCP("tcp", addr)
		if err != nil {
			t.Fatalf("%v: %v", addr, err)
		}
		if addr != nil && addr.IP != nil && !l.Addr().(*net.TCPAddr).IP.Equal(addr.IP) {
			t.Errorf("%v: listens on %v", addr, l.Addr())
		}
		go echo(l)
		reaches(t, "tcp", fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port))
		l.Close()
	}
}

func TestListenUnix(t *testing.T) {
	var n gracenet.Net
	for _, network := range []string{"unix", "unixpacket"} {
		addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: network}
		l, err := n.ListenUnix(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		go echo(l)
		reaches(t, network, addr.Name)
		l.Close()
	}
	if l, err := n.ListenUnix("unix", nil); err == nil {
		l.Close()
		t.Error("no address, and no error")
	}
}

func TestUnknownNetworks(t *testing.T) {
	var n gracenet.Net
	listen := func(network string) error { _, err := n.Listen(network, "127.0.0.1:0"); return err }
	listenTCP := func(network string) error { _, err := n.ListenTCP(network, &net.TCPAddr{}); return err }
	listenTCPNil := func(network string) error { _, err := n.ListenTCP(network, nil); return err }
	listenUnix := func(network string) error { _, err := n.ListenUnix(network, &net.UnixAddr{}); return err }
	listenUnixNil := func(network string) error { _, err := n.ListenUnix(network, nil); return err }
	listenPacket := func(network string) error { _, err := n.ListenPacket(network, "127.0.0.1:0"); return err }
	for what, test := range map[string]struct {
		f        func(string) error
		networks []string
	}{
		"Listen":          {listen, []string{"", "udp", "unixgram", "ip", "TCP", "tcp5", "tcp "}},
		"ListenTCP":       {listenTCP, []string{"", "unix", "udp", "ip4"}},
		"ListenTCP, nil":  {listenTCPNil, []string{"", "unix"}},
		"ListenUnix":      {listenUnix, []string{"", "tcp", "unixgram"}},
		"ListenUnix, nil": {listenUnixNil, []string{"", "tcp"}},
		"ListenPacket":    {listenPacket, []string{"", "tcp", "unix", "ip4:icmp", "udp5"}},
	} {
		for _, network := range test.networks {
			err := test.f(network)
			var unknown net.UnknownNetworkError
			var op *net.OpError
			if !errors.As(err, &unknown) || string(unknown) != network || !errors.As(err, &op) || op.Op != "listen" || op.Net != network {
				t.Errorf("%s(%q): %v, want a net.UnknownNetworkError in a net.OpError", what, network, err)
			}
		}
	}
}

func TestListenErrorsAreThoseOfPackageNet(t *testing.T) {
	var n gracenet.Net
	l, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := n.Listen("tcp", l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("an address in use: %v, want EADDRINUSE", err)
	}
	if _, err := n.Listen("tcp", "127.0.0.1:99999"); err == nil {
		t.Error("no error for a port that cannot be")
	}
	if _, err := n.Listen("unix", filepath.Join(t.TempDir(), "no", "directory")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v, want fs.ErrNotExist", err)
	}
	if _, err := n.Listen("tcp", "systemd:web"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "systemd:web") {
		t.Errorf("a name that systemd has not given: %v, want fs.ErrNotExist", err)
	}
}

func TestManyMayListenAtATime(t *testing.T) {
	const goroutines, each = 8, 20
	var listening sync.WaitGroup
	var mu sync.Mutex
	ports := map[int]bool{}
	var n gracenet.Net // all may share one, or have their own
	for i := range goroutines {
		listening.Add(1)
		go func() {
			defer listening.Done()
			n := &n
			if i%2 == 0 {
				n = &gracenet.Net{}
			}
			for range each {
				l, err := n.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { l.Close() })
				mu.Lock()
				port := l.Addr().(*net.TCPAddr).Port
				if ports[port] {
					t.Errorf("port %d was given out twice", port)
				}
				ports[port] = true
				mu.Unlock()
			}
		}()
	}
	listening.Wait()
}

func TestOneOfManyListensOnAPath(t *testing.T) {
	for range 50 {
		path := filepath.Join(t.TempDir(), "s")
		var listening sync.WaitGroup
		var mu sync.Mutex
		var won []net.Listener
		for range 8 {
			listening.Add(1)
			go func() {
				defer listening.Done()
				var n gracenet.Net
				l, err := n.Listen("unix", path)
				if err != nil {
					if !errors.Is(err, syscall.EADDRINUSE) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				won = append(won, l)
				mu.Unlock()
			}()
		}
		listening.Wait()
		if len(won) != 1 {
			t.Errorf("%d listen on one path", len(won))
		}
		for _, l := range won {
			l.Close()
		}
		if t.Failed() {
			return
		}
	}
}

func TestListenConfigIsHonoured(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	refuse := errors.New("refused by the program")
	var refused bool
	n := gracenet.Net{ListenConfig: net.ListenConfig{
		KeepAlive: -1,
		Control: func(network, address string, c syscall.RawConn) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, network)
			if refused {
				return refuse
			}
			var err error
			if cerr := c.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4321)
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}}
	l, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := n.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	u, err := n.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	tcp, err := n.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if want := []string{"tcp4", "udp4", "unix", "tcp4"}; !slices.Equal(seen, want) {
		t.Errorf("Control was called for %q, want %q", seen, want)
	}
	option := func(c syscall.Conn, option int) (value int) {
		t.Helper()
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { value, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, option) })
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if got, without := option(l.(syscall.Conn), syscall.SO_RCVBUF), option(plain.(syscall.Conn), syscall.SO_RCVBUF); got == without {
		t.Errorf("the receive buffer is %d, as without Control", got)
	}

	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if option(server.(syscall.Conn), syscall.SO_KEEPALIVE) != 0 {
		t.Error("keep-alive is on, which ListenConfig turns off")
	}

	refused = true
	if l, err := n.Listen("tcp", "127.0.0.1:0"); !errors.Is(err, refuse) {
		t.Errorf("%v, %v, want the error of Control", l, err)
	}
	if p, err := n.ListenPacket("udp", "127.0.0.1:0"); !errors.Is(err, refuse) {
		t.Errorf("%v, %v, want the error of Control", p, err)
	}
}

func TestListenPacket(t *testing.T) {
	var n gracenet.Net
	dir := t.TempDir()
	for _, test := range []struct{ network, address string }{
		{"udp", "127.0.0.1:0"},
		{"udp4", "127.0.0.1:0"},
		{"udp6", "[::1]:0"},
		{"unixgram", filepath.Join(dir, "gram")},
	} {
		t.Run(test.network, func(t *testing.T) {
			if test.network == "udp6" && !hasIPv6() {
				t.Skip("no IPv6 here")
			}
			p, err := n.ListenPacket(test.network, test.address)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			c, err := net.Dial(test.network, p.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("datagram")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			p.SetReadDeadline(time.Now().Add(patience))
			size, _, err := p.ReadFrom(b)
			if err != nil || string(b[:size]) != "datagram" {
				t.Errorf("read %q, %v", b[:size], err)
			}
		})
	}
}

// Paths of unix sockets.

// An opener opens a unix socket at a path.
type opener struct {
	network string
	open    func(n *gracenet.Net, path string) (io.Closer, error)
}

var openers = []opener{
	{"unix", func(n *gracenet.Net, path string) (io.Closer, error) { return n.Listen("unix", path) }},
	{"unixpacket", func(n *gracenet.Net, path string) (io.Closer, error) { return n.Listen("unixpacket", path) }},
	{"unixgram", func(n *gracenet.Net, path string) (io.Closer, error) { return n.ListenPacket("unixgram", path) }},
}

// leaveBehind makes the file of a socket that nobody has any more.
func leaveBehind(t *testing.T, network, path string) {
	t.Helper()
	if network == "unixgram" {
		c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		return
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestUnixPathIsRemovedWithItsSocket(t *testing.T) {
	for _, o := range openers {
		t.Run(o.network, func(t *testing.T) {
			var n gracenet.Net
			path := filepath.Join(t.TempDir(), "s")
			for range 3 { // and may be used again
				c, err := o.open(&n, path)
				if err != nil {
					t.Fatal(err)
				}
				if !exists(path) {
					t.Error("there is no file")
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
				if exists(path) {
					t.Error("the file is there after Close")
				}
			}
		})
	}
}

// The second Close of a socket must not remove the path of the next one.
func TestUnixPathIsRemovedOnce(t *testing.T) {
	for _, o := range openers {
		t.Run(o.network, func(t *testing.T) {
			var n gracenet.Net
			path := filepath.Join(t.TempDir(), "s")
			old, err := o.open(&n, path)
			if err != nil {
				t.Fatal(err)
			}
			old.Close()
			c, err := o.open(&n, path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := old.Close(); err == nil {
				t.Error("closing twice is no error")
			}
			if !exists(path) {
				t.Error("the next socket's file is gone")
			}
		})
	}
}

func TestUnixPathLeftBehindIsReplaced(t *testing.T) {
	for _, o := range openers {
		for _, left := range []string{"unix", "unixpacket", "unixgram"} {
			t.Run(left+" by "+o.network, func(t *testing.T) {
				var n gracenet.Net
				path := filepath.Join(t.TempDir(), "s")
				leaveBehind(t, left, path)
				c, err := o.open(&n, path)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if l, ok := c.(net.Listener); ok {
					go echo(l)
					reaches(t, o.network, path)
				}
			})
		}
	}
}

func TestLiveUnixPathIsInUse(t *testing.T) {
	for _, o := range openers {
		for _, other := range openers {
			t.Run(other.network+" by "+o.network, func(t *testing.T) {
				var n gracenet.Net
				path := filepath.Join(t.TempDir(), "s")
				live, err := other.open(&n, path)
				if err != nil {
					t.Fatal(err)
				}
				defer live.Close()
				before, err := os.Lstat(path)
				if err != nil {
					t.Fatal(err)
				}
				if c, err := o.open(&n, path); !errors.Is(err, syscall.EADDRINUSE) {
					if err == nil {
						c.Close()
					}
					t.Errorf("%v, want EADDRINUSE", err)
				}
				after, err := os.Lstat(path)
				if err != nil || !os.SameFile(before, after) {
					t.Errorf("the live socket's file was touched: %v", err)
				}
			})
		}
	}
}

// Somebody whose queue is full is there, though he does not answer.
func TestBusyUnixPathIsInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 100 { // until the queue is full
		d := net.Dialer{Timeout: 100 * time.Millisecond}
		c, err := d.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	var n gracenet.Net
	if l, err := n.Listen("unix", path); !errors.Is(err, syscall.EADDRINUSE) {
		if err == nil {
			l.Close()
		}
		t.Errorf("%v, want EADDRINUSE", err)
	}
}

// Between bind and listen a socket refuses connections, and is somebody's all the same.
func TestPathThatIsBoundButNotListenedOnIsInUse(t *testing.T) {
	for _, typ := range []int{syscall.SOCK_STREAM, syscall.SOCK_SEQPACKET, syscall.SOCK_DGRAM} {
		for _, o := range openers {
			path := filepath.Join(t.TempDir(), "s")
			fd, err := syscall.Socket(syscall.AF_UNIX, typ, 0)
			if err != nil {
				t.Skip(err)
			}
			if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			var n gracenet.Net
			if c, err := o.open(&n, path); !errors.Is(err, syscall.EADDRINUSE) {
				if err == nil {
					c.Close()
				}
				t.Errorf("type %d by %s: %v, want EADDRINUSE", typ, o.network, err)
			}
			syscall.Close(fd)
		}
	}
}

func TestWhatIsNoSocketIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	file, link, directory := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "directory")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	var n gracenet.Net
	for _, path := range []string{file, link, directory} {
		for _, o := range openers {
			if c, err := o.open(&n, path); !errors.Is(err, syscall.EADDRINUSE) {
				if err == nil {
					c.Close()
				}
				t.Errorf("%s %s: %v, want EADDRINUSE", o.network, path, err)
			}
			if !exists(path) {
				t.Errorf("%s is gone", path)
			}
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

func TestAbstractUnixSocketsHaveNoPath(t *testing.T) {
	var n gracenet.Net
	name := fmt.Sprintf("@gracenet-test-%d", os.Getpid())
	for _, o := range openers {
		c, err := o.open(&n, name)
		if err != nil {
			t.Skipf("no abstract sockets here: %v", err)
		}
		if _, err := o.open(&n, name); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: the same name again: %v, want EADDRINUSE", o.network, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Files.

func TestFileIsACopy(t *testing.T) {
	var n gracenet.Net
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.AddFile("TestFileIsACopy", f); err != nil {
		t.Fatal(err)
	}
	want, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil { // it stays the caller's
		t.Fatal(err)
	}
	for range 2 {
		got, err := new(gracenet.Net).File("TestFileIsACopy") // all share what travels
		if err != nil {
			t.Fatal(err)
		}
		if info, err := got.Stat(); err != nil || !os.SameFile(info, want) {
			t.Errorf("another file, %v", err)
		}
		if _, err := got.WriteString("x"); err != nil {
			t.Error(err)
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFileThatWasNotAdded(t *testing.T) {
	var n gracenet.Net
	if f, err := n.File("nobody has added this"); !errors.Is(err, fs.ErrNotExist) || f != nil {
		t.Errorf("%v, %v, want fs.ErrNotExist", f, err)
	}
	closed, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if err := n.AddFile("TestFileThatWasNotAdded", closed); err == nil {
		t.Error("a closed file was added")
	}
	if err := n.AddFile("TestFileThatWasNotAdded", nil); err == nil {
		t.Error("no file was added")
	}
	if _, err := n.File("TestFileThatWasNotAdded"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
}

func TestAddFileReplaces(t *testing.T) {
	var n gracenet.Net
	dir := t.TempDir()
	for i := range 3 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := n.AddFile("TestAddFileReplaces", f); err != nil {
			t.Fatal(err)
		}
		want, _ := f.Stat()
		got, err := n.File("TestAddFileReplaces")
		if err != nil {
			t.Fatal(err)
		}
		if info, err := got.Stat(); err != nil || !os.SameFile(info, want) {
			t.Errorf("not the file that was added last, %v", err)
		}
		got.Close()
	}
}

// A pipe stays one that can be waited for with a deadline.
func TestAddFileDoesNotMakeItBlocking(t *testing.T) {
	var n gracenet.Net
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := n.AddFile("TestAddFileDoesNotMakeItBlocking", r); err != nil {
		t.Fatal(err)
	}
	copied, err := n.File("TestAddFileDoesNotMakeItBlocking")
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	for _, f := range []*os.File{r, copied} {
		if err := f.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() {
			_, err := f.Read(make([]byte, 1))
			result <- err
		}()
		select {
		case err := <-result:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%v, want os.ErrDeadlineExceeded", err)
			}
		case <-time.After(patience):
			w.Close() // ends the Read
			t.Fatal("Read blocks")
		}
	}
}

func TestFileDuringAddFile(t *testing.T) {
	var n gracenet.Net
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const name = "TestFileDuringAddFile"
	if err := n.AddFile(name, f); err != nil {
		t.Fatal(err)
	}
	var using sync.WaitGroup
	for range 2 {
		using.Add(2)
		go func() {
			defer using.Done()
			for range 300 {
				if err := n.AddFile(name, f); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		go func() {
			defer using.Done()
			for range 300 {
				got, err := n.File(name)
				if err != nil {
					t.Errorf("there was such a file all the time: %v", err)
					return
				}
				got.Close()
			}
		}()
	}
	using.Wait()
}
