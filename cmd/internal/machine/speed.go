package machine

import (
	"crypto/sha256"
	"io"
	"net"
	"time"

	"github.com/stagebench/stagebench/results"
)

// each is how long Calibrate does each kind of work.
const each = 40 * time.Millisecond

// walked is the size of the memory that the memory work walks through. It is larger than the
// private caches of a core, and competes with other tenants of the machine for the shared one.
const walked = 16 << 20

// Calibrate measures how fast the machine is at the moment, with three kinds of work that
// never change. A kind that fails has speed 0.
func Calibrate() results.Speed {
	return results.Speed{Compute: compute(), Loopback: loopback(), Memory: memory()}
}

// rate calls work for a while and returns the calls per second.
func rate(work func() error) float64 {
	begin := time.Now()
	for n := 0; ; n++ {
		if elapsed := time.Since(begin); elapsed >= each {
			return float64(n) / elapsed.Seconds()
		}
		if work() != nil {
			return 0
		}
	}
}

// compute hashes blocks of 1 KiB with SHA-256.
func compute() float64 {
	var block [1024]byte
	return rate(func() error {
		sum := sha256.Sum256(block[:])
		copy(block[:], sum[:])
		return nil
	})
}

// loopback sends a byte over TCP and waits until it comes back.
func loopback() float64 {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0
	}
	defer func() { _ = listener.Close() }()
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		if c, err := listener.Accept(); err == nil {
			_, _ = io.Copy(c, c) // until the client closes
			_ = c.Close()
		}
	}()
	c, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return 0
	}
	b := []byte{0}
	trips := rate(func() error {
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b)
		return err
	})
	_ = c.Close()
	<-echoed
	return trips
}

// memory reads a byte of each cache line of a large memory, a page at a time.
func memory() float64 {
	block, at, sum := make([]byte, walked), 0, byte(0)
	for i := range block {
		block[i] = byte(i) // so that the kernel gives it memory
	}
	pages := rate(func() error {
		for line := 0; line < 4096; line += 64 {
			sum += block[at+line]
		}
		at = (at + 4096*17) % walked // 17: not the order that the CPU reads ahead
		return nil
	})
	block[0] = sum // the reads cannot be left out
	return pages
}
