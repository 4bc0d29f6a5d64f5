package sqlite_test

import (
	"bufio"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// BenchmarkProtocol measures the CPU time that a node needs for the protocol of one prepared statement. It sends the
// same messages as pgx, for a statement that does almost nothing. The client does not parse the answers.
func BenchmarkProtocol(b *testing.B) {
	node := &process{dir: b.TempDir(), address: "127.0.0.1:0", durability: "normal"}
	node.Restart(b)
	b.Cleanup(func() { node.Kill(b) })
	link, err := net.Dial("tcp", node.address)
	if err != nil {
		b.Fatal(err)
	}
	defer link.Close()
	in := bufio.NewReader(link)
	f := pgproto3.NewFrontend(in, link)
	await := func() {
		for {
			if m, err := f.Receive(); err != nil {
				b.Fatal(err)
			} else if _, ready := m.(*pgproto3.ReadyForQuery); ready {
				return
			}
		}
	}
	f.Send(startup())
	if err := f.Flush(); err != nil {
		b.Fatal(err)
	}
	await()
	f.SendParse(&pgproto3.Parse{Name: "s", Query: "select 1"})
	f.SendSync(&pgproto3.Sync{})
	if err := f.Flush(); err != nil {
		b.Fatal(err)
	}
	await()
	var ask []byte
	for _, m := range []pgproto3.FrontendMessage{
		&pgproto3.Bind{PreparedStatement: "s", ResultFormatCodes: []int16{1}},
		&pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{}, &pgproto3.Sync{},
	} {
		ask, _ = m.Encode(ask)
	}
	const answer = 5 + 34 + 15 + 14 + 6 // BindComplete, RowDescription, DataRow, CommandComplete, ReadyForQuery
	got := make([]byte, answer)
	before := node.cpu(b)
	for b.Loop() {
		if _, err := link.Write(ask); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(link, got); err != nil {
			b.Fatal(err)
		}
		if got[answer-6] != 'Z' {
			b.Fatalf("the answer is %q", got)
		}
	}
	b.ReportMetric(float64((node.cpu(b)-before).Nanoseconds())/1000/float64(b.N), "node-us/op")
}
