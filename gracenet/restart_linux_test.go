package gracenet_test

import (
	"fmt"
	"syscall"
	"testing"
	"unsafe"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// limitDescriptors sets how many descriptors a running process may have, and
// returns how many that was.
func limitDescriptors(t *testing.T, p *driver.Process, n uint64) uint64 {
	t.Helper()
	const limitNOFILE = 7 // RLIMIT_NOFILE
	var limit, old [2]uint64
	prlimit := func(set *[2]uint64) {
		t.Helper()
		if _, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(p.Pid), limitNOFILE,
			uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(&old)), 0, 0); errno != 0 {
			t.Fatalf("prlimit: %v", errno)
		}
	}
	prlimit(nil)
	limit = old
	limit[0] = n
	prlimit(&limit)
	return old[0]
}

// limitFor returns the limit under which so many descriptors are free.
func limitFor(p *driver.Process, free int) uint64 {
	used := map[int]bool{}
	for _, d := range p.Descriptors() {
		used[d.FD] = true
	}
	for limit := 0; ; limit++ {
		if !used[limit] {
			if free--; free < 0 {
				return uint64(limit)
			}
		}
	}
}

func TestFullDescriptorTableFailsOnlyTheRestart(t *testing.T) {
	t.Parallel()
	s, first := start(t, driver.NewFaults(t), "tcp=127.0.0.1:0", "udp=127.0.0.1:0")
	answeredBy(t, first, "tcp", first.Addrs[0])
	for free := range 5 { // each step of the start meets the limit once
		old := limitDescriptors(t, first, limitFor(first, free))
		from := s.Mark()
		first.Signal(syscall.SIGUSR2)
		s.Line(fmt.Sprintf(`^(failed-restart|started) pid=%d`, first.Pid), from)
		limitDescriptors(t, first, old)
		if s.Count(fmt.Sprintf(`^started pid=%d`, first.Pid)) > 0 {
			second := s.Ready(2)
			first.WaitExit(0)
			answeredBy(t, second, "tcp", first.Addrs[0])
			if free == 0 {
				t.Error("a successor was started without a descriptor to be had")
			}
			return
		}
		if s.Count(`^failed-restart .*too many open files`) == 0 {
			t.Errorf("the error does not say why:\n%s", s.Output())
		}
		answeredBy(t, first, "tcp", first.Addrs[0])
		answeredBy(t, first, "udp", first.Addrs[1])
	}
	answeredBy(t, restart(t, s, first, 2), "tcp", first.Addrs[0])
}
