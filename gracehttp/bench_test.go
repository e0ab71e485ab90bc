package gracehttp

import (
	"bufio"
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// The benchmarks hold a server under Serve against one of plain net/http, in
// turns, so that both find the machine in the same state. They report
//
//	throughput-ratio  requests in a time, as a part of plain net/http's: the
//	                  median over all pairs of turns
//	allocs-ratio      allocations for a request, likewise: of all together
//
// Both servers are without a restart: this is what the library costs all day.

func BenchmarkKeepAlive(b *testing.B)      { benchmark(b, true) }
func BenchmarkNewConnections(b *testing.B) { benchmark(b, false) }

// benchClients send requests side by side, benchTurn each before it is the other
// server's turn.
const (
	benchClients = 4
	benchTurn    = 50
)

func benchmark(b *testing.B, keepAlive bool) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	l := benchListener(b)
	plain := &http.Server{Handler: handler}
	go plain.Serve(l)
	b.Cleanup(func() { plain.Close() })

	ours := benchListener(b)
	a := &app{idleGrace: time.Second}
	a.process.Logger = log.New(io.Discard, "", 0)
	s := newServer(a, &http.Server{Handler: handler}, ours.(socket), "benchmark")
	a.servers = append(a.servers, s)
	go s.Serve(func() {})
	s.Resume()
	b.Cleanup(s.cut)

	sides := [2]*benchSide{
		{addr: l.Addr().String(), keepAlive: keepAlive},
		{addr: ours.Addr().String(), keepAlive: keepAlive},
	}
	for _, side := range sides {
		side.turn(b) // opens the connections
		side.took, side.allocs = 0, 0
	}
	var ratios []float64
	for b.Loop() {
		plain, ours := sides[0].took, sides[1].took
		// Who begins has the other's leftovers to collect.
		sides[len(ratios)%2].turn(b)
		sides[(len(ratios)+1)%2].turn(b)
		ratios = append(ratios, float64(sides[0].took-plain)/float64(sides[1].took-ours))
	}
	requests := float64(len(ratios) * benchClients * benchTurn)
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "throughput-ratio")
	b.ReportMetric(float64(sides[1].allocs)/float64(sides[0].allocs), "allocs-ratio")
	b.ReportMetric(float64(sides[0].allocs)/requests, "plain-allocs/request")
	b.ReportMetric(float64(sides[1].allocs)/requests, "grace-allocs/request")
	b.ReportMetric(float64(sides[1].took)/requests*benchClients, "ns/request")
}

func benchListener(b *testing.B) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// A benchSide is one server and its clients.
type benchSide struct {
	addr      string
	keepAlive bool
	clients   [benchClients]benchClient

	took   time.Duration
	allocs uint64
}

// turn sends the requests of one turn.
func (s *benchSide) turn(b *testing.B) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range s.clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range benchTurn {
				if err := s.clients[i].request(s.addr, s.keepAlive); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	s.took += time.Since(start)
	runtime.ReadMemStats(&after)
	s.allocs += after.Mallocs - before.Mallocs
}

// A benchClient allocates little, so that it does not hide what the server does.
type benchClient struct {
	conn net.Conn
	in   *bufio.Reader
}

var (
	benchRequest      = []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	benchRequestClose = []byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	benchAnswerEnd    = []byte("\r\n\r\nhello")
)

func (c *benchClient) request(addr string, keepAlive bool) (err error) {
	if c.conn == nil {
		if c.conn, err = net.Dial("tcp", addr); err != nil {
			return err
		}
		if c.in == nil {
			c.in = bufio.NewReader(nil)
		}
		c.in.Reset(c.conn)
	}
	request := benchRequest
	if !keepAlive {
		request = benchRequestClose
		defer func() {
			c.conn.Close()
			c.conn = nil
		}()
	}
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	for {
		b, err := c.in.ReadSlice('o')
		if err != nil {
			return err
		}
		if bytes.HasSuffix(b, benchAnswerEnd) {
			return nil
		}
	}
}
