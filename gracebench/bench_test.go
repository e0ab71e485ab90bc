package main

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// The benchmarks measure real processes, to be compared with benchstat:
//
//	go test -run '^$' -bench . -count 10 ./gracebench

func benchTarget(b *testing.B, plain bool) *target {
	sig, err := signalByName("USR2")
	if err != nil {
		b.Skip(err)
	}
	t, err := startTarget(b.Context(), config{signal: sig}, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: 1, plain: plain})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { t.stop(b.Context()) })
	return t
}

// onBoth runs the benchmark on the library and on net/http alone.
func onBoth(b *testing.B, run func(b *testing.B, t *target)) {
	for _, plain := range []bool{false, true} {
		name := map[bool]string{false: "grace", true: "net-http"}[plain]
		b.Run("server="+name, func(b *testing.B) { run(b, benchTarget(b, plain)) })
	}
}

// An operation is a new connection with one request.
func BenchmarkAccept(b *testing.B) {
	onBoth(b, func(b *testing.B, t *target) {
		buf := make([]byte, 1024)
		for b.Loop() {
			if _, err := getOnce(t.addr, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// An operation is a request on an open connection.
func BenchmarkRequest(b *testing.B) {
	onBoth(b, func(b *testing.B, t *target) {
		conn, err := net.Dial("tcp", t.addr)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		buf := make([]byte, 1024)
		for b.Loop() {
			if _, err := get(conn, buf, false); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// An operation is a restart of an idle server, from the signal to the first answer of the new process.
func BenchmarkRestart(b *testing.B) { benchRestarts(b, 0) }

// An operation is a restart in which this many idle connections move; ns/conn is each one's part in the time to the old
// process's end.
func BenchmarkMove(b *testing.B) {
	for _, n := range []int{100, 1000, 4000} {
		b.Run(fmt.Sprintf("conns=%d", n), func(b *testing.B) { benchRestarts(b, n) })
	}
}

func benchRestarts(b *testing.B, n int) {
	if limit := fileLimit() - 500; n > limit {
		b.Skipf("%d descriptors are too few", limit+500)
	}
	t := benchTarget(b, false)
	conns, err := openIdle(b.Context(), t.addr, n)
	defer conns.close()
	if err != nil {
		b.Fatal(err)
	}
	var first, gone time.Duration
	restarts := 0
	for b.Loop() {
		one, _, err := t.restartIdle(b.Context())
		if err != nil {
			b.Fatal(t.withLog(err))
		}
		first, gone, restarts = first+one.firstAnswer, gone+one.gone, restarts+1
	}
	if _, lost, err := conns.use(b.Context()); err != nil || lost > 0 {
		b.Fatalf("%d of %d connections lost: %v", lost, n, err)
	}
	each := gone / time.Duration(restarts)
	if n > 0 {
		b.ReportMetric(float64(each.Nanoseconds())/float64(n), "ns/conn")
		b.ReportMetric(float64(each.Nanoseconds()), "ns/op")
		return
	}
	b.ReportMetric(float64((first / time.Duration(restarts)).Nanoseconds()), "ns/op")
	b.ReportMetric(float64(each.Nanoseconds()), "gone-ns/op")
}
