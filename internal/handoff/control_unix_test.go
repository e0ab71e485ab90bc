//go:build unix

package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// patience is how long anything may take that must not take forever.
const patience = 30 * time.Second

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	await(t, what, done)
}

func await[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing has happened within %v", what, patience)
	}
	return v
}

// controlOf takes the descriptor over.
func controlOf(fd int) (*control, error) {
	c, err := newUnixConn(fd)
	if err != nil {
		return nil, err
	}
	return newControl(c), nil
}

// newPair returns the two ends of a control socket.
func newPair(t *testing.T) (a, b *control) {
	t.Helper()
	a, fd, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	b, err = controlOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.close()
		b.close()
	})
	return a, b
}

// receiveKind returns the next message, which must be of this kind.
func (c *control) receiveKind(t *testing.T, k kind, body any) *message {
	t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(patience))
	m, err := c.receive()
	if err != nil {
		t.Fatalf("waiting for a message of kind %d: %v", k, err)
	}
	if m.kind != k {
		t.Fatalf("message of kind %d with body %q, want kind %d", m.kind, m.body, k)
	}
	if body != nil {
		if err := m.decode(body); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// listDescriptors returns what this process has open.
func listDescriptors() (all map[string]string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	all = map[string]string{}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			all[e.Name()] = target
		}
	}
	return all
}

// checkLeaks fails the test if it leaves descriptors open. It must be called
// first, so that it looks last, and not in tests that run side by side.
func checkLeaks(t *testing.T) {
	t.Helper()
	a, b := newPair(t) // the poller's descriptors come with the first
	a.close()
	b.close()
	before := listDescriptors()
	t.Cleanup(func() {
		t.Helper()
		var after map[string]string
		defer func() {
			if len(after) > 0 {
				t.Errorf("descriptors were left open: %v", after)
			}
		}()
		driver.Eventually(t, "descriptors to be closed", func() bool {
			after = listDescriptors()
			for fd, target := range before {
				if after[fd] == target {
					delete(after, fd)
				}
			}
			return len(after) == 0
		})
	})
}

// newFiles returns open files, all different.
func newFiles(t *testing.T, n int) (files []*os.File, fds []int) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files, fds = append(files, f), append(fds, int(f.Fd()))
	}
	return files, fds
}

// sameFiles fails the test if the descriptors are not those of the files.
func sameFiles(t *testing.T, fds []int, files []*os.File) {
	t.Helper()
	if len(fds) != len(files) {
		t.Errorf("%d descriptors, want %d", len(fds), len(files))
		return
	}
	for i, fd := range fds {
		var got syscall.Stat_t
		if err := syscall.Fstat(fd, &got); err != nil {
			t.Errorf("descriptor %d of the message: %v", i, err)
			continue
		}
		info, err := files[i].Stat()
		if err != nil {
			t.Fatal(err)
		}
		if want := info.Sys().(*syscall.Stat_t); got.Ino != want.Ino || got.Dev != want.Dev {
			t.Errorf("descriptor %d of the message is another file than %s", i, files[i].Name())
		}
	}
}

func fdFlags(t *testing.T, fd int) (cloexec, nonblocking bool) {
	t.Helper()
	get := func(command int) uintptr {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), uintptr(command), 0)
		if errno != 0 {
			t.Fatalf("flags of descriptor %d: %v", fd, errno)
		}
		return flags
	}
	return get(syscall.F_GETFD)&syscall.FD_CLOEXEC != 0, get(syscall.F_GETFL)&syscall.O_NONBLOCK != 0
}

func TestMessagesArriveInOrderWithTheirDescriptors(t *testing.T) {
	checkLeaks(t)
	a, b := newPair(t)
	files, fds := newFiles(t, maxFDs)
	large := Status{Text: strings.Repeat("x", maxBody-100)} // more than the socket holds
	type sent struct {
		kind kind
		body any
		fds  int
	}
	var all []sent
	for i, test := range bodies {
		all = append(all, sent{test.kind, test.body, i % 3})
	}
	all = append(all, sent{kindStatus, large, 0}, sent{kindConns, connsBody{Listener: 2}, maxFDs},
		sent{kindStatus, large, maxFDs}, sent{kindReady, nil, 1}, sent{kindReady, nil, 0})

	sending := make(chan error, 1)
	go func() {
		for _, s := range all {
			if err := a.send(s.kind, s.body, fds[:s.fds]...); err != nil {
				sending <- err
				return
			}
		}
		sending <- a.close()
	}()
	for _, want := range all {
		m, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := encode(want.kind, want.body, want.fds)
		if err != nil {
			t.Fatal(err)
		}
		if m.kind != want.kind || !bytes.Equal(m.body, encoded[headerSize:]) {
			t.Errorf("got kind %d with %d bytes, want kind %d with %d bytes", m.kind, len(m.body), want.kind, len(encoded)-headerSize)
		}
		if m.truncated() {
			t.Errorf("kind %d with %d descriptors is said to be truncated", m.kind, want.fds)
		}
		sameFiles(t, m.fds, files[:want.fds])
		for _, fd := range m.fds {
			if cloexec, _ := fdFlags(t, fd); !cloexec {
				t.Error("a descriptor that came with a message is not close-on-exec")
			}
		}
		closeAll(m.fds)
	}
	if err := await(t, "sending", sending); err != nil {
		t.Error(err)
	}
	if m, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last message: %v, %v, want io.EOF", m, err)
	}
	sameFiles(t, fds, files) // they stay the sender's
}

func TestManyMaySendAtATime(t *testing.T) {
	a, b := newPair(t)
	const senders, each = 8, 50
	var sending sync.WaitGroup
	for i := range senders {
		sending.Add(1)
		go func() {
			defer sending.Done()
			// Of a size that does not go out at once.
			body := Status{Text: strings.Repeat(fmt.Sprint(i), 20000+i)}
			for range each {
				if err := a.send(kindStatus, body); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	var counts [senders]int
	for range senders * each {
		var body Status
		b.receiveKind(t, kindStatus, &body)
		i := int(body.Text[0] - '0')
		if want := strings.Repeat(fmt.Sprint(i), 20000+i); body.Text != want {
			t.Fatalf("message of sender %d is not whole", i)
		}
		counts[i]++
	}
	sending.Wait()
	for i, n := range counts {
		if n != each {
			t.Errorf("%d messages of sender %d, want %d", n, i, each)
		}
	}
}

func TestBothEndsAreCloseOnExecAndNonBlocking(t *testing.T) {
	checkLeaks(t)
	a, fd, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	if cloexec, _ := fdFlags(t, fd); !cloexec {
		t.Error("the successor's end is inherited by any process that is started meanwhile")
	}
	b, err := controlOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*control{a, b} {
		withFDs([]syscall.Conn{c.conn}, func(fds []int) error {
			if cloexec, nonblocking := fdFlags(t, fds[0]); !cloexec || !nonblocking {
				t.Errorf("close-on-exec %v, non-blocking %v, want both", cloexec, nonblocking)
			}
			return nil
		})
		c.close()
	}
}

func TestWhatIsNoControlSocketIsRefusedAndClosed(t *testing.T) {
	checkLeaks(t)
	_, files := newFiles(t, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	copyOf := func(fd int) int {
		fd, err := syscall.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	var listener int
	withFDs([]syscall.Conn{l.(syscall.Conn)}, func(fds []int) error {
		listener = copyOf(fds[0])
		return nil
	})
	for what, fd := range map[string]int{"a file": copyOf(files[0]), "a listening TCP socket": listener, "nothing": 1 << 20} {
		if c, err := controlOf(fd); err == nil {
			c.close()
			t.Errorf("%s is taken for a control socket", what)
		}
	}
}

func TestHalfAMessageIsAnError(t *testing.T) {
	checkLeaks(t)
	_, fds := newFiles(t, 5)
	whole, err := encode(kindConns, connsBody{Listener: 2}, len(fds))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		t.Run(fmt.Sprintf("%d bytes", n), func(t *testing.T) {
			a, b := newPair(t)
			if n > 0 {
				if _, _, err := a.conn.WriteMsgUnix(whole[:n], syscall.UnixRights(fds...), nil); err != nil {
					t.Fatal(err)
				}
			}
			a.close()
			m, err := b.receive()
			if err == nil {
				t.Fatalf("received %+v", m)
			}
			if n == 0 && !errors.Is(err, io.EOF) {
				t.Errorf("%v, want io.EOF", err)
			}
		})
	}
}

func TestMessageMayComeInPieces(t *testing.T) {
	checkLeaks(t)
	files, fds := newFiles(t, 3)
	whole, err := encode(kindConns, connsBody{Listener: 2}, len(fds))
	if err != nil {
		t.Fatal(err)
	}
	a, b := newPair(t)
	received := make(chan *message, 1)
	go func() {
		m, err := b.receive()
		if err != nil {
			t.Error(err)
		}
		received <- m
	}()
	for i := range whole {
		var rights []byte
		if i < len(fds) { // one with each of the first bytes
			rights = syscall.UnixRights(fds[i])
		}
		if _, _, err := a.conn.WriteMsgUnix(whole[i:i+1], rights, nil); err != nil {
			t.Fatal(err)
		}
	}
	m := await(t, "receive", received)
	if m.truncated() || !bytes.Equal(m.body, whole[headerSize:]) {
		t.Errorf("received %+v", m)
	}
	sameFiles(t, m.fds, files)
	closeAll(m.fds)
}

func TestReceiveDoesNotReadIntoTheNextMessage(t *testing.T) {
	checkLeaks(t)
	a, b := newPair(t)
	files, fds := newFiles(t, 2)
	// Both are there before the first is read.
	for i, fd := range fds {
		if err := a.send(kindConns, connsBody{Listener: i}, fd); err != nil {
			t.Fatal(err)
		}
	}
	for i := range fds {
		var body connsBody
		m := b.receiveKind(t, kindConns, &body)
		if body.Listener != i {
			t.Errorf("batch %d, want %d", body.Listener, i)
		}
		sameFiles(t, m.fds, files[i:i+1])
		closeAll(m.fds)
	}
}

// What would follow half a message could not be read.
func TestHalfSentMessageIsTheLast(t *testing.T) {
	a, b := newPair(t)
	a.timeout = 50 * time.Millisecond
	err := a.send(kindStatus, Status{Text: strings.Repeat("x", maxBody-100)}) // nobody reads it
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want os.ErrDeadlineExceeded", err)
	}
	if err := a.send(kindReady, nil); !isGone(err) {
		t.Errorf("sending after half a message: %v, want an error", err)
	}
	if m, err := b.receive(); err == nil {
		t.Errorf("half a message was read as kind %d, %d bytes", m.kind, len(m.body))
	}
}

func TestWrongNumberOfDescriptorsIsNoticed(t *testing.T) {
	checkLeaks(t)
	_, fds := newFiles(t, 3)
	for _, sent := range []int{0, 1, 3} {
		a, b := newPair(t)
		whole, err := encode(kindConns, connsBody{Listener: 2}, 2)
		if err != nil {
			t.Fatal(err)
		}
		var rights []byte
		if sent > 0 {
			rights = syscall.UnixRights(fds[:sent]...)
		}
		if _, _, err := a.conn.WriteMsgUnix(whole, rights, nil); err != nil {
			t.Fatal(err)
		}
		m := b.receiveKind(t, kindConns, nil)
		if !m.truncated() {
			t.Errorf("%d descriptors came with a message that announces 2, and nobody noticed", sent)
		}
		closeAll(m.fds)
	}
}

func TestShutdownLetsWhatHasArrivedBeRead(t *testing.T) {
	checkLeaks(t)
	a, b := newPair(t)
	files, fds := newFiles(t, 1)
	if err := b.send(kindReady, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.send(kindTaken, takenBody{}, fds...); err != nil {
		t.Fatal(err)
	}
	if err := a.send(kindGiveUp, nil); err != nil {
		t.Fatal(err)
	}
	a.shutdown()
	if err := b.send(kindStepDown, nil); !isGone(err) {
		t.Errorf("sending to an end that was shut down: %v, want an error that the sender can tell", err)
	}
	if err := a.send(kindStatus, Status{}); !isGone(err) {
		t.Errorf("sending after shutdown: %v, want an error", err)
	}
	a.receiveKind(t, kindReady, nil)
	m := a.receiveKind(t, kindTaken, nil)
	sameFiles(t, m.fds, files)
	closeAll(m.fds)
	if _, err := a.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v, want io.EOF", err)
	}
	b.receiveKind(t, kindGiveUp, nil)
	if _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("then %v at the other end, want io.EOF", err)
	}
}

func TestPostedMessagesArriveInOrderBeforeFlushReturns(t *testing.T) {
	a, b := newPair(t)
	for i := range 50 {
		a.post(kindStatus, Status{Text: fmt.Sprint(i)})
	}
	a.flush(patience)
	a.shutdown()
	for i := range 50 {
		var body Status
		b.receiveKind(t, kindStatus, &body)
		if body.Text != fmt.Sprint(i) {
			t.Fatalf("%s has arrived, want %d", body.Text, i)
		}
	}
}

// A server may have many successors that fail.
func TestClosedControlSocketLeavesNothingRunning(t *testing.T) {
	running := func() int {
		stacks := make([]byte, 4<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*queue).run(")
	}
	before := running()
	for range 50 {
		a, b := newPair(t)
		a.post(kindGiveUp, nil)
		b.receiveKind(t, kindGiveUp, nil)
		a.close()
		within(t, "flush of a socket that is closed", func() {
			a.post(kindGiveUp, nil)
			a.flush(2 * patience)
		})
	}
	driver.Eventually(t, "the senders to end", func() bool { return running() <= before })
}

func TestDescriptorsAreLentWithoutChangingThem(t *testing.T) {
	checkLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, server := tcpPair(t, l)
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	conns := []syscall.Conn{l.(syscall.Conn), client, server, p.(syscall.Conn)}
	before := len(listDescriptors())
	err = withFDs(conns, func(fds []int) error {
		if len(fds) != len(conns) {
			t.Fatalf("%d descriptors, want %d", len(fds), len(conns))
		}
		if during := len(listDescriptors()); during != before {
			t.Errorf("%d descriptors are open, %d before", during, before)
		}
		for i, fd := range fds {
			if _, nonblocking := fdFlags(t, fd); !nonblocking {
				t.Errorf("%T: blocking", conns[i])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	withFDs(conns, func(fds []int) error {
		for i, fd := range fds {
			if _, nonblocking := fdFlags(t, fd); !nonblocking {
				t.Errorf("%T: blocking afterwards", conns[i])
			}
		}
		return nil
	})
}

func TestLentDescriptorsStayOpenMeanwhile(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, server := tcpPair(t, l)
	closed := make(chan error, 1)
	err = withFDs([]syscall.Conn{server}, func(fds []int) error {
		go func() { closed <- server.Close() }()
		// Close has begun when the connection can no longer be used.
		for deadline := time.Now().Add(patience); !errors.Is(server.SetDeadline(time.Time{}), net.ErrClosed); {
			if time.Now().After(deadline) {
				return errors.New("Close does not begin")
			}
			runtime.Gosched()
		}
		var st syscall.Stat_t
		return syscall.Fstat(fds[0], &st)
	})
	if err != nil {
		t.Error(err)
	}
	if err := await(t, "Close", closed); err != nil {
		t.Error(err)
	}
}

func TestOneClosedConnectionLendsNone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, a := tcpPair(t, l)
	_, b := tcpPair(t, l)
	b.Close()
	err = withFDs([]syscall.Conn{a, b}, func([]int) error {
		t.Error("called with the descriptor of a closed connection")
		return nil
	})
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want net.ErrClosed", err)
	}
	inner := errors.New("inner")
	if err := withFDs([]syscall.Conn{a}, func([]int) error { return inner }); !errors.Is(err, inner) {
		t.Errorf("error %v, want the function's own", err)
	}
}

// pair returns both ends of a new connection to l.
func pair(t *testing.T, l net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func tcpPair(t *testing.T, l net.Listener) (client, server *net.TCPConn) {
	t.Helper()
	c, s := pair(t, l)
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

var quiet = log.New(io.Discard, "", 0)

func newLog(w io.Writer) *log.Logger { return log.New(w, "", 0) }

// FuzzControlMessage feeds bytes to whoever reads a control socket: to the
// reader of messages, then to a successor's and a predecessor's end.
func FuzzControlMessage(f *testing.F) {
	var all []byte
	for _, test := range bodies {
		b, err := encode(test.kind, test.body, 0)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		all = append(all, b...)
	}
	f.Add(all)
	f.Add(all[:len(all)-1])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 6, 0, 0})
	f.Add([]byte{0, 0, 0, 4, 0, 6, 0, 9, 'n', 'u', 'l', 'l'})
	f.Add([]byte("\x00\x00\x00\x19\x00\x06\x00\x00" + `{"Batch":1,"Listener":-1}`))
	f.Add([]byte("\x00\x00\x00\x0b\x03\xe8\x00\x00" + `{"Any":"x"}`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		for {
			before := r.Len()
			m, err := readMessage(r)
			if err != nil {
				break
			}
			if used := before - r.Len(); used != headerSize+len(m.body) {
				t.Fatalf("a message of %d bytes has used %d of the stream", headerSize+len(m.body), used)
			}
			if len(m.body) > limit(m.kind) || m.announced > maxFDs {
				t.Fatalf("a message of %d bytes and %d descriptors was read", len(m.body), m.announced)
			}
			for _, body := range []any{&helloBody{}, &socketBody{}, &stateBody{}, &connsBody{}, &takenBody{}, &Status{}, &readyBody{}, &stepDownBody{}, &moveBody{}} {
				m.decode(body)
			}
		}

		// Whatever the other end says, nobody panics, and nobody waits once
		// it is closed.
		play := func(who string, receive func(*control)) {
			c, fd, err := controlPair()
			if err != nil {
				t.Fatal(err)
			}
			peer, err := controlOf(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			go func() {
				defer peer.close()
				peer.conn.SetDeadline(time.Now().Add(patience))
				peer.conn.Write(stream)
			}()
			done := make(chan struct{})
			go func() {
				defer close(done)
				receive(c)
			}()
			select {
			case <-done:
			case <-time.After(patience):
				t.Fatalf("%s still waits for a control socket that is closed", who)
			}
		}
		predecessor := func(c *control) *Predecessor {
			g := newGeneration()
			g.SetLogger(quiet)
			p := newPredecessor(g, c)
			p.receiver(0, func(conns []*os.File, _ []Waiting) {
				for _, c := range conns {
					c.Close()
				}
			})
			p.OnMove(func(c net.Conn, _ []byte) { c.Close() }, accept.New(nil))
			return p
		}
		play("a starting successor", func(c *control) {
			p := predecessor(c)
			p.receiveState()
			p.number()
			p.g.Discard()
		})
		play("a successor", func(c *control) { predecessor(c).receive() })
		play("a predecessor", func(c *control) {
			s := playedSuccessor(newGeneration(), c)
			close(s.ended)
			go s.receive()
			for e := range s.events {
				if e == Ended {
					return
				}
			}
		})
	})
}

func TestClosedControlSocketLeavesNoGoroutine(t *testing.T) {
	posting := func() int {
		stacks := make([]byte, 1<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*queue).run(")
	}
	before := posting()
	a, b := newPair(t)
	a.post(kindGiveUp, nil)
	if _, err := b.receive(); err != nil {
		t.Fatal(err)
	}
	a.close()
	driver.Eventually(t, "the goroutine that sends to end", func() bool { return posting() <= before })
}
