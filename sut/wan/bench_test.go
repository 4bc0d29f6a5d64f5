package wan

import (
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// process returns the CPU time that this process has used, in the relay, the clients and the origin.
func process(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// answering is an origin that answers each request of 256 bytes with a number of bytes.
func answering(b *testing.B, answer int) sut.Peer {
	origin := listen(b, "origin-1")
	go func() {
		for {
			c, err := origin.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				request, response := make([]byte, requestBytes), make([]byte, answer)
				for {
					if _, err := io.ReadFull(c, request); err != nil {
						return
					}
					if _, err := c.Write(response); err != nil {
						return
					}
				}
			}()
		}
	}()
	return origin.peer
}

const requestBytes = 256

// BenchmarkRequests sends requests over 32 connections that stay open, with answers of the size of an image. It reports
// the CPU time of a request, in clients, relay and origin (compare "direct"), and how much longer than RTT exchanges
// take.
func BenchmarkRequests(b *testing.B) {
	const answer = 13 << 10
	for name, rtt := range map[string]time.Duration{
		"direct": -1, "rtt=0": 0, "rtt=20ms": 20 * time.Millisecond, "rtt=25ms": 25 * time.Millisecond,
	} {
		b.Run(name, func(b *testing.B) {
			origin := answering(b, answer)
			address := origin.Address
			if rtt >= 0 {
				r := start(b, Config{RTT: rtt, Origins: []sut.Peer{origin}})
				defer r.stop(b)
				address = r.address
			}
			var clients sync.WaitGroup
			var mu sync.Mutex
			var late []time.Duration
			left := make(chan struct{}, b.N)
			for range b.N {
				left <- struct{}{}
			}
			close(left)
			b.ReportAllocs()
			used := process(b)
			b.ResetTimer()
			for range 32 {
				c := connect(b, "127.0.0.1", address)
				clients.Go(func() {
					defer c.Close()
					request, response := make([]byte, requestBytes), make([]byte, answer)
					var mine []time.Duration
					for range left {
						began := time.Now()
						_, _ = c.Write(request)
						if _, err := io.ReadFull(c, response); err != nil {
							b.Error(err)
							return
						}
						mine = append(mine, time.Since(began)-max(rtt, 0))
					}
					mu.Lock()
					defer mu.Unlock()
					late = append(late, mine[min(1, len(mine)):]...) // the first one pays the handshake
				})
			}
			clients.Wait()
			b.StopTimer()
			b.ReportMetric(float64(process(b)-used)/float64(b.N), "cpu-ns/op")
			if slices.Sort(late); len(late) > 0 {
				b.ReportMetric(float64(late[len(late)/2].Microseconds()), "late-p50-us")
				b.ReportMetric(float64(late[len(late)*99/100].Microseconds()), "late-p99-us")
			}
		})
	}
}

// BenchmarkThroughput sends bytes over one connection.
func BenchmarkThroughput(b *testing.B) {
	for name, rtt := range map[string]time.Duration{"rtt=0": 0, "rtt=2ms": 2 * time.Millisecond} {
		b.Run(name, func(b *testing.B) {
			origin := listen(b, "origin-1")
			r := start(b, Config{RTT: rtt, Origins: []sut.Peer{origin.peer}})
			defer r.stop(b)
			c := connect(b, "127.0.0.1", r.address)
			accepted, err := origin.Accept()
			if err != nil {
				b.Fatal(err)
			}
			block := make([]byte, 64<<10)
			b.SetBytes(int64(len(block)))
			go func() {
				for range b.N {
					_, _ = c.Write(block)
				}
				_ = c.CloseWrite()
			}()
			used := process(b)
			b.ResetTimer()
			if n, err := io.Copy(struct{ io.Writer }{io.Discard}, struct{ net.Conn }{accepted}); err != nil ||
				n != int64(b.N)*int64(len(block)) {
				b.Errorf("%d bytes arrived, %v", n, err)
			}
			b.StopTimer()
			b.ReportMetric(float64(process(b)-used)/float64(b.N), "cpu-ns/op")
			_, _ = accepted.Close(), c.Close()
		})
	}
}

// BenchmarkLateness measures how much longer than RTT a small exchange takes, one at a time, with the alarms of the
// system and with timers of Go.
func BenchmarkLateness(b *testing.B) {
	const rtt = 25 * time.Millisecond
	for name, open := range map[string]func() (alarms, error){
		"direct": nil, "system": openAlarms, "timers": func() (alarms, error) { return timers{}, nil },
	} {
		b.Run(name, func(b *testing.B) {
			origin := answering(b, requestBytes)
			address, added := origin.Address, time.Duration(0)
			if open != nil {
				r := start(b, Config{RTT: rtt, Origins: []sut.Peer{origin}}, func(r *Relay) { r.alarms = open })
				defer r.stop(b)
				address, added = r.address, rtt
			}
			c := connect(b, "127.0.0.1", address)
			defer c.Close()
			message := make([]byte, requestBytes)
			var late []time.Duration
			for first := true; first || b.Loop(); first = false {
				began := time.Now()
				_, _ = c.Write(message)
				if _, err := io.ReadFull(c, message); err != nil {
					b.Fatal(err)
				}
				if !first { // the first exchange pays the handshake
					late = append(late, time.Since(began)-added)
				}
			}
			slices.Sort(late)
			b.ReportMetric(float64(late[len(late)/2].Microseconds()), "late-p50-us")
			b.ReportMetric(float64(late[len(late)*9/10].Microseconds()), "late-p90-us")
		})
	}
}
