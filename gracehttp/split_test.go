//go:build unix

package gracehttp

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

var (
	splitFor  = flag.Duration("split", 0, "How long clients send what is cut at random, over restarts, if not as long as usual.")
	splitSeed = flag.Uint64("split-seed", 0, "What decides how; random if 0.")
)

// Whatever clients send, cut anywhere, is answered once over restarts at any moment: each
// request runs once, and one whose client has gone at most once.
func TestRequestsCutAtRandomRunOnce(t *testing.T) {
	t.Parallel()
	seed := *splitSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-split-seed %d", seed)
	length := *splitFor
	if length == 0 {
		length = time.Duration(driver.Times(3, 8)) * time.Second
	}
	driver.Each(t, driver.Some([]string{"tcp", "unix"}, 2), func(t *testing.T, protocol string) {
		s := startSite(t, protocol, "")
		ctx, cancel := context.WithTimeout(context.Background(), length)
		defer cancel()
		var wg sync.WaitGroup
		clients := make([]*splitter, 6)
		for i := range clients {
			clients[i] = &splitter{t: t, site: s, id: i, Rand: rand.New(rand.NewPCG(seed, uint64(i)))}
			wg.Add(1)
			go func() {
				defer wg.Done()
				clients[i].run(ctx)
			}()
		}
		moments, p, restarts := rand.New(rand.NewPCG(seed, 1000)), s.first, 0
		for ctx.Err() == nil {
			driver.Instant(t, time.Duration(moments.IntN(200))*time.Millisecond)
			restarts++
			p.Signal(syscall.SIGUSR2)
			next := s.Ready(restarts + 1)
			p.WaitExit(0)
			p = next
		}
		wg.Wait()
		p.Signal(syscall.SIGTERM)
		p.WaitExit(0)
		s.WaitEnd()

		ran := map[string]int{}
		for _, m := range s.All(`^ran pid=\d+ token=(\S+)`) {
			ran[m[1]]++
		}
		answered, left, again := 0, 0, 0
		for _, c := range clients {
			for _, token := range c.answered {
				if ran[token] != 1 {
					t.Errorf("request %s was answered once, and ran %d times", token, ran[token])
				}
			}
			for _, token := range c.left {
				if ran[token] > 1 {
					t.Errorf("the client of request %s has gone, and it ran %d times", token, ran[token])
				}
			}
			answered, left, again = answered+len(c.answered), left+len(c.left), again+c.again
		}
		t.Logf("%d restarts, %d requests answered, %d left, %d sent again since an answer before said Connection: close", restarts, answered, left, again)
	})
}

// A splitter is one client.
type splitter struct {
	*rand.Rand
	t    *testing.T
	site *site
	id   int

	n        int
	pending  []splitAsk // were not answered, since the server has said that it closes
	answered []string   // tokens
	left     []string   // tokens of requests whose answers were not waited for
	again    int
}

// A splitAsk is one request.
type splitAsk struct {
	method, token string
	body          []byte
	sum           string // in its trailer
	text          string
}

func (c *splitter) run(ctx context.Context) {
	for ctx.Err() == nil || len(c.pending) > 0 {
		if err := c.connection(ctx); err != nil {
			c.t.Errorf("client %d: %v", c.id, err)
			return
		}
	}
}

// connection sends a few batches on one connection.
func (c *splitter) connection(ctx context.Context) error {
	conn, err := c.site.dial(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for range 1 + c.IntN(20) {
		conn.SetDeadline(time.Now().Add(driver.Patience))
		asks := c.pending
		c.pending = nil
		if ctx.Err() != nil && len(asks) == 0 {
			return nil
		}
		for len(asks) == 0 || c.IntN(3) > 0 && len(asks) < 8 {
			asks = append(asks, c.ask())
		}
		var stream strings.Builder
		for _, a := range asks {
			stream.WriteString(a.text)
		}
		what := c.IntN(20)
		if what == 0 && ctx.Err() == nil { // leave, in the midst of it
			c.write(conn, stream.String()[:c.IntN(stream.Len()+1)], c.cuts())
			if tcp, ok := conn.(*net.TCPConn); ok && c.IntN(2) == 0 {
				tcp.SetLinger(0)
			}
			for _, a := range asks {
				c.left = append(c.left, a.token)
			}
			return nil
		}
		half := what == 1
		cuts, sent := c.cuts(), make(chan error, 1)
		go func() {
			err := c.write(conn, stream.String(), cuts)
			if half && err == nil {
				err = conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			sent <- err
		}()
		for i, a := range asks {
			last, err := a.answer(in)
			if err != nil {
				return fmt.Errorf("request %s, number %d of %d on the way from %v: %w", a.token, i+1, len(asks), conn.LocalAddr(), err)
			}
			c.answered = append(c.answered, a.token)
			if last && !half {
				c.pending = asks[i+1:]
				c.again += len(c.pending)
				conn.Close()
				<-sent
				return nil
			}
		}
		if err := <-sent; err != nil {
			return err
		}
		if half {
			if b, err := in.ReadByte(); err != io.EOF {
				return fmt.Errorf("after all answers, and the end of all requests: %q, %v; want the end", b, err)
			}
			return nil
		}
	}
	return nil
}

// cuts returns a source of lengths and pauses for one stream.
func (c *splitter) cuts() *rand.Rand { return rand.New(rand.NewPCG(c.Uint64(), c.Uint64())) }

// write sends a stream in pieces.
func (c *splitter) write(conn net.Conn, stream string, r *rand.Rand) error {
	longest := []int{3, 50, 1000, 1 << 20}[r.IntN(4)]
	longest = max(longest, len(stream)/50)
	for len(stream) > 0 {
		n := min(1+r.IntN(longest), len(stream))
		if _, err := io.WriteString(conn, stream[:n]); err != nil {
			return err
		}
		stream = stream[n:]
		if r.IntN(4) == 0 {
			time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
		}
	}
	return nil
}

// ask returns the next request.
func (c *splitter) ask() splitAsk {
	c.n++
	a := splitAsk{method: "POST", token: fmt.Sprintf("%d-%d", c.id, c.n)}
	head := func() string { return a.method + " /ran?token=" + a.token + " HTTP/1.1\r\nHost: x\r\n" }
	kind := c.IntN(6)
	if kind < 2 {
		a.method = []string{"GET", "HEAD"}[kind]
		a.text = head() + "\r\n"
		return a
	}
	a.body = make([]byte, c.IntN([]int{1, 10, 5000, 70000}[c.IntN(4)]+1))
	for i := range a.body {
		a.body[i] = byte(c.Uint32())
	}
	expect := ""
	if c.IntN(3) == 0 {
		expect = "Expect: 100-continue\r\n" // and does not wait for that
	}
	if kind == 2 {
		a.text = head() + expect + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(a.body), a.body)
		return a
	}
	var chunks strings.Builder
	for rest := a.body; len(rest) > 0; {
		n := min(1+c.IntN(len(a.body)), len(rest))
		fmt.Fprintf(&chunks, "%x%s\r\n%s\r\n", n, []string{"", ";a=b"}[c.IntN(2)], rest[:n])
		rest = rest[n:]
	}
	trailer := ""
	if kind > 4 {
		a.sum = fmt.Sprint(c.Uint32())
		expect += "Trailer: Sum\r\n"
		trailer = "Sum: " + a.sum + "\r\n"
	}
	a.text = head() + expect + "Transfer-Encoding: chunked\r\n\r\n" + chunks.String() + "0\r\n" + trailer + "\r\n"
	return a
}

// answer reads and checks the answer, and reports whether it is the connection's last.
func (a splitAsk) answer(in *bufio.Reader) (last bool, err error) {
	var resp *http.Response
	for resp == nil || resp.StatusCode == http.StatusContinue {
		if resp, err = http.ReadResponse(in, &http.Request{Method: a.method}); err != nil {
			return false, err
		}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	want := fmt.Sprintf("%d %08x", len(a.body), crc32.ChecksumIEEE(a.body))
	if a.method == "HEAD" {
		want = ""
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Token") != a.token || resp.Header.Get("Sum") != a.sum || string(body) != want {
		return false, fmt.Errorf("%s, token %q, sum %q, %q; want %q", resp.Status, resp.Header.Get("Token"), resp.Header.Get("Sum"), body, want)
	}
	return resp.Close, nil
}
