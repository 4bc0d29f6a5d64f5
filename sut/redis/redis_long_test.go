//go:build long

package redis_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/redis"
	"github.com/stagebench/stagebench/sut/resp/policytest"
)

// sampling is a Redis server that is asked for keys, and stores those that it does not
// have.
type sampling struct {
	*testing.T
	server *redis.Server
	conn   net.Conn
	lines  *bufio.Reader
	script string
}

// sample starts a Redis server with a budget.
func sample(t *testing.T, evict string, budget int64) *sampling {
	t.Helper()
	install, err := redis.Find()
	if err != nil {
		t.Skip(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	server := redis.New(redis.Config{Install: install, Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Port: listener.Addr().(*net.TCPAddr).Port, MaxBytes: budget, Evict: evict})
	command := server.Command()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill() // it has nothing to lose
		_ = command.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); server.Ready(t.Context()) != nil; {
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not answer")
		}
	}
	s := &sampling{T: t, server: server}
	if s.conn, err = net.Dial("tcp", address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	s.lines = bufio.NewReader(s.conn)
	text := `if redis.call('GET',KEYS[1]) then return 1 end redis.call('SET',KEYS[1],string.rep('x',1000),'EX',3600) return 0`
	s.send(fmt.Sprintf("*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n$%d\r\n%s\r\n", len(text), text))
	s.line()
	s.script = strings.TrimSpace(s.line())
	return s
}

func (s *sampling) send(text string) {
	if _, err := io.WriteString(s.conn, text); err != nil {
		s.Fatal(err)
	}
}

func (s *sampling) line() string {
	text, err := s.lines.ReadString('\n')
	if err != nil {
		s.Fatal(err)
	}
	return text
}

// ask asks for keys, and returns which were there.
func (s *sampling) ask(keys []int) (hits []bool) {
	var script strings.Builder
	for _, key := range keys {
		name := strconv.Itoa(key)
		fmt.Fprintf(&script, "*4\r\n$7\r\nEVALSHA\r\n$40\r\n%s\r\n$1\r\n1\r\n$%d\r\n%s\r\n", s.script, len(name), name)
	}
	s.send(script.String())
	for range keys {
		switch answer := s.line(); answer {
		case ":1\r\n", ":0\r\n":
			hits = append(hits, answer == ":1\r\n")
		default:
			s.Fatalf("answered with %q", answer)
		}
	}
	return hits
}

func (s *sampling) stats() sut.CacheFigures {
	stats, err := s.server.Stats(context.Background())
	if err != nil {
		s.Fatal(err)
	}
	return stats
}

// Redis takes its victims from samples, and knows when an entry was asked for to the
// second only: its hit ratios at 1, 5 and 20 % of the keys are near those of the
// policies all the same, at 1,000 requests per second. (Asked a hundred times faster,
// its LRU of 5 % was at 51.7 %, which is that of FIFO, where LRU has 56.9 %.) How many
// keys its budget holds is counted, and is what the simulation has room for.
func TestAgainstSimulation(t *testing.T) {
	const keys, warm, requests, batch = 10_000, 50_000, 60_000, 10
	for _, evict := range []string{"lru", "lfu", "fifo"} {
		for _, percent := range []int64{1, 5, 20} {
			t.Run(fmt.Sprintf("%s/%d%%", evict, percent), func(t *testing.T) {
				t.Parallel()
				empty := sample(t, evict, 0).stats().Bytes
				s := sample(t, evict, empty+keys*percent/100*1200)
				z := policytest.NewZipf(keys, 7)
				var asked []int
				var got int
				var room int64
				tick := time.NewTicker(batch * time.Millisecond)
				defer tick.Stop()
				for len(asked) < warm+requests {
					var these []int
					for range batch {
						these = append(these, z.Next())
					}
					paced := len(asked) >= warm
					asked = append(asked, these...)
					hits := s.ask(these)
					if !paced {
						continue
					}
					<-tick.C
					for _, hit := range hits {
						if hit {
							got++
						}
					}
					if len(asked)%1000 == 0 {
						room = max(room, s.stats().Entries)
					}
				}
				simulation := policytest.NewNaive(int(room))
				want := 0
				for i, key := range asked {
					if hit := simulation.Request(evict, key); hit && i >= warm {
						want++
					}
				}
				ratio := func(hits int) float64 { return 100 * float64(hits) / requests }
				t.Logf("%d keys: hit ratio %.2f %%, simulation %.2f %%", room, ratio(got), ratio(want))
				if math.Abs(ratio(got)-ratio(want)) > 5 {
					t.Errorf("hit ratio %.2f %%, want %.2f %% within 5 points", ratio(got), ratio(want))
				}
			})
		}
	}
}
