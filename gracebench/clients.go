package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// answerTimeout is how long a client waits for an answer before it counts the request as lost.
const answerTimeout = 10 * time.Second

// lostPause is how long a user waits after a lost request, so that one who is refused does not count it all the time.
const lostPause = 5 * time.Millisecond

// A client sends requests one after the other, and none of them twice.
type client interface {
	// do sends one request and checks that the answer is its own. An error is a lost request.
	do(q request) (answer, error)
	// idle waits, and notices when the connection is closed meanwhile.
	idle(d time.Duration)
	// dials is how many connections it has opened.
	dials() int
	close()
}

type request struct {
	body string
	wait time.Duration // how long the handler is to wait
	cut  int           // if above 0, the request is written in two parts, the first of cut bytes
}

func (q request) query() string { return fmt.Sprintf("%dus", q.wait.Microseconds()) }

type answer struct {
	pid    string // of the process that answered
	local  string // the client's address of a connection
	remote string // the same as the server saw it
	sent   time.Duration
}

// errWrong is an answer that is not the one to the request.
var errWrong = errors.New("wrong answer")

type statusError int

func (s statusError) Error() string { return fmt.Sprintf("status %d", int(s)) }

// A rawClient speaks HTTP/1.1 on a connection of its own, so that nothing is sent again behind its back.
type rawClient struct {
	dial     func() (net.Conn, error)
	each     bool // a new connection for each request
	announce bool // ask the server to close, rather than close first

	conn   net.Conn // nil when there is none
	in     *bufio.Reader
	dialed int
}

func (c *rawClient) do(q request) (answer, error) {
	a, err := c.begin()
	if err != nil {
		return a, err
	}
	stay, err := c.exchange(q, &a)
	if err != nil || !stay || c.each {
		c.close()
	}
	return a, err
}

// begin connects, if there is no connection.
func (c *rawClient) begin() (answer, error) {
	a := answer{sent: now()}
	if c.conn == nil {
		conn, err := c.dial()
		if err != nil {
			return a, err
		}
		c.dialed++
		c.conn, c.in = conn, bufio.NewReader(conn)
	}
	a.local = c.conn.LocalAddr().String()
	return a, c.conn.SetDeadline(time.Now().Add(answerTimeout))
}

// exchange reports whether the connection may be used again.
func (c *rawClient) exchange(q request, a *answer) (stay bool, err error) {
	if err := c.write(q, a); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return false, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	a.pid, a.remote = resp.Header.Get("Pid"), resp.Header.Get("Remote-Addr")
	switch {
	case resp.StatusCode != http.StatusOK:
		return false, statusError(resp.StatusCode)
	case string(body) != q.body:
		return false, errWrong
	case c.in.Buffered() > 0:
		return false, fmt.Errorf("%w: more than was asked for", errWrong)
	}
	return !resp.Close, nil
}

func (c *rawClient) write(q request, a *answer) error {
	var b bytes.Buffer
	b.WriteString("POST /")
	if q.wait > 0 {
		b.WriteString("?" + q.query())
	}
	fmt.Fprintf(&b, " HTTP/1.1\r\nHost: gracebench\r\nContent-Length: %d\r\n", len(q.body))
	if c.announce {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	b.WriteString(q.body)
	return c.send(b.Bytes(), q.cut, a)
}

// send writes in two parts, the first of cut bytes, if cut is above 0.
func (c *rawClient) send(out []byte, cut int, a *answer) error {
	if cut > 0 && cut < len(out) {
		if _, err := c.conn.Write(out[:cut]); err != nil {
			return err
		}
		out = out[cut:]
		time.Sleep(time.Millisecond)
		a.sent = now()
	}
	_, err := c.conn.Write(out)
	return err
}

// idle waits by reading, as clients do that keep connections in a pool: one that the server closes now is dropped, and
// no request is lost with it.
func (c *rawClient) idle(d time.Duration) {
	if c.conn == nil {
		time.Sleep(d)
		return
	}
	end := time.Now().Add(d)
	c.conn.SetReadDeadline(end)
	if _, err := c.in.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.close()
		time.Sleep(time.Until(end))
	}
}

func (c *rawClient) dials() int { return c.dialed }

func (c *rawClient) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// An http2Client has a transport for itself alone. The transport may send a request again that the server has refused
// with GOAWAY, as HTTP/2 allows; that is not a retry of ours.
type http2Client struct {
	transport *http.Transport
	url       string
	dialed    atomic.Int64
}

// newHTTP2Client returns a client of the server at addr: over TLS with this configuration, or with prior knowledge if
// it is nil.
func newHTTP2Client(addr string, config *tls.Config) *http2Client {
	c := &http2Client{url: "http://" + addr + "/"}
	c.transport = &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c.dialed.Add(1)
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
	}
	if config == nil {
		c.transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		c.url = "https://" + addr + "/"
		c.transport.TLSClientConfig = config
		c.transport.Protocols.SetHTTP2(true)
	}
	return c
}

func (c *http2Client) do(q request) (answer, error) {
	a := answer{sent: now()}
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	url := c.url
	if q.wait > 0 {
		url += "?" + q.query()
	}
	// The request gets a GetBody from this kind of reader.
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(q.body))
	if err != nil {
		return a, err
	}
	resp, err := c.transport.RoundTrip(r)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	a.pid, a.remote = resp.Header.Get("Pid"), resp.Header.Get("Remote-Addr")
	switch {
	case resp.ProtoMajor != 2:
		return a, fmt.Errorf("%w: %s", errWrong, resp.Proto)
	case resp.StatusCode != http.StatusOK:
		return a, statusError(resp.StatusCode)
	case string(body) != q.body:
		return a, errWrong
	}
	return a, nil
}

func (c *http2Client) idle(d time.Duration) { time.Sleep(d) }
func (c *http2Client) dials() int           { return int(c.dialed.Load()) }
func (c *http2Client) close()               { c.transport.CloseIdleConnections() }

// errorKind is the short name under which a lost request is counted.
func errorKind(err error) string {
	var status statusError
	switch {
	case errors.As(err, &status), errors.Is(err, errWrong):
		return err.Error()
	case errors.Is(err, errRefused):
		return "connection refused"
	case errors.Is(err, errReset):
		return "connection reset"
	case errors.Is(err, syscall.EPIPE):
		return "closed before the request was written"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %v", answerTimeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed before the answer"
	}
	return err.Error()
}

// handshakes counts TLS handshakes of clients, and those that resumed a session.
type handshakes struct {
	total, resumed atomic.Int64
}

func (h *handshakes) count(s tls.ConnectionState) error {
	h.total.Add(1)
	if s.DidResume {
		h.resumed.Add(1)
	}
	return nil
}

// A witness is told at once what users see.
type witness interface {
	answered(pid string, at time.Duration)
	missed() // a request was lost
}

// A user is a client with its habits, and what it has seen.
type user struct {
	number int
	client client
	tells  witness
	pauses time.Duration // at most; 0 sends one request after another

	requests int
	lost     map[string]int // by kind of error
	remotes  map[string]bool
	samples  []sample // but those for which the handler waits
}

func newUser(number int, c client, w witness) *user {
	return &user{
		number:  number,
		client:  c,
		tells:   w,
		pauses:  []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 400 * time.Millisecond}[number%4],
		lost:    make(map[string]int),
		remotes: make(map[string]bool),
	}
}

// meet makes the users open their connections: all at the same time, so that a proxy has one to the server for each of
// them.
func meet(users []*user) error {
	var wg sync.WaitGroup
	errs := make([]error, len(users))
	for i, u := range users {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = u.meet()
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (u *user) meet() error {
	u.requests++
	a, err := u.client.do(request{body: fmt.Sprintf("user %d\n", u.number), wait: 200 * time.Millisecond})
	if err != nil {
		return fmt.Errorf("the first request: %w", err)
	}
	u.remotes[a.remote] = true
	u.tells.answered(a.pid, now())
	return nil
}

// run sends requests until ctx is done.
func (u *user) run(ctx context.Context) {
	rnd := rand.New(rand.NewPCG(uint64(u.number), 0))
	padding := strings.Repeat("x", 200)
	for ctx.Err() == nil {
		if u.pauses > 0 {
			u.client.idle(time.Duration(rnd.Int64N(int64(u.pauses))))
		}
		u.requests++
		q := request{body: fmt.Sprintf("user %d request %d %s\n", u.number, u.requests, padding[:rnd.IntN(len(padding))])}
		switch rnd.IntN(8) {
		case 0:
			q.wait = time.Duration(rnd.IntN(5_000)) * time.Microsecond
		case 1:
			q.cut = 1 + rnd.IntN(200)
		}
		a, err := u.client.do(q)
		end := now()
		if err != nil {
			u.lost[errorKind(err)]++
			u.tells.missed()
			sleep(ctx, lostPause)
			continue
		}
		u.tells.answered(a.pid, end)
		u.remotes[a.remote] = true
		if q.wait == 0 {
			u.samples = append(u.samples, sample{a.sent, end})
		}
	}
}
