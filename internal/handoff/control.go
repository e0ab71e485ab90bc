package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// sendTimeout bounds how long a peer that does not read can hold up a sender.
const sendTimeout = 10 * time.Second

// postTimeout is how long one who does not wait for a message to be sent keeps others
// from it.
const postTimeout = 100 * time.Millisecond

// A control is one end of the socket pair between two generations. Any
// goroutine may send; one receives.
type control struct {
	conn *net.UnixConn

	timeout time.Duration // sendTimeout
	mu      sync.Mutex    // one message at a time
	posts   queue         // of messages that nobody waits for
	rights  []int         // descriptors of the message that is being received
}

// controlPair returns our end of a new socket pair, and the descriptor of the
// other end, which is the caller's to close.
func controlPair() (*control, int, error) {
	c, theirs, err := socketPair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, 0, err
	}
	return newControl(c), theirs, nil
}

// newUnixConn takes the descriptor of a connected unix socket over.
func newUnixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "unix socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is not a unix socket", fd)
	}
	return uc, nil
}

func newControl(c *net.UnixConn) *control {
	return &control{conn: c, timeout: sendTimeout, posts: queue{max: 64}}
}

// send writes one message; the descriptors stay the caller's.
func (c *control) send(k kind, body any, fds ...int) error {
	return c.write(c.timeout, k, body, fds)
}

// sendLater is send for one who has time: as long as a peer does not read, others who
// have something to say are held up for a moment only.
func (c *control) sendLater(k kind, body any, fds ...int) error {
	for {
		err := c.write(postTimeout, k, body, fds)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// post sends a message, in the order of the calls, without waiting for a peer that does
// not read: one that has left many unread does not get any more.
func (c *control) post(k kind, body any) {
	c.posts.add("", func() { c.sendLater(k, body) })
}

// flush waits until all that was posted is sent, or the timeout is over.
func (c *control) flush(timeout time.Duration) { c.posts.flushWithin(timeout) }

// write writes a message. If the error is os.ErrDeadlineExceeded and another message can
// be written, then nothing of this one was.
func (c *control) write(timeout time.Duration, k kind, body any, fds []int) error {
	b, err := encode(k, body, len(fds))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(timeout))
	for rest, rights := b, rightsOf(fds); len(rest) > 0; {
		n, _, err := c.conn.WriteMsgUnix(rest, rights, nil)
		if err != nil {
			if len(rest) < len(b) {
				c.shutdown() // half a message: nothing that follows could be read
			}
			if errors.Is(err, net.ErrClosed) {
				err = io.ErrClosedPipe // unlike a descriptor that was to be sent
			}
			return err
		}
		rest, rights = rest[n:], nil
		c.conn.SetWriteDeadline(time.Now().Add(c.timeout)) // what has begun must end
	}
	return nil
}

// receive waits for one message. It never reads past the end of it, so that
// descriptors cannot be taken for those of another message. The error is
// io.EOF when the other end is closed.
func (c *control) receive() (*message, error) {
	c.rights = nil
	m, err := readMessage(c)
	if err != nil {
		closeAll(c.rights)
		return nil, err
	}
	m.fds = c.rights
	return m, nil
}

// readMessage reads a header and the body that it announces.
func readMessage(r io.Reader) (*message, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	k, n, fds, err := parseHeader(header)
	if err != nil {
		return nil, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("control message of kind %d, %d bytes: %w", k, n, io.ErrUnexpectedEOF)
	}
	return &message{kind: k, body: body, announced: fds}, nil
}

// shutdown lets neither side send any more; what has arrived can still be
// received. So a message either reaches the other side, or its sender learns
// that it did not.
func (c *control) shutdown() {
	if raw, err := c.conn.SyscallConn(); err == nil {
		raw.Control(shutdown)
	}
}

func (c *control) close() error { return c.conn.Close() }

// withFDs calls f with the descriptors of conns, which stay open meanwhile.
// Neither a copy is made nor, as (*os.File).Fd would, the socket switched to
// blocking mode for everybody who shares it.
func withFDs(conns []syscall.Conn, f func(fds []int) error, fds ...int) error {
	if len(conns) == 0 {
		return f(fds)
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = withFDs(conns[1:], f, append(fds, int(fd))...) })
	return errors.Join(err, inner)
}
