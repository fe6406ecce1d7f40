#include "textflag.h"

// func jump(stack uintptr, p *plan, entry uintptr)
TEXT ·jump(SB), NOSPLIT|NOFRAME, $0-24
	MOVQ	stack+0(FP), AX
	MOVQ	p+8(FP), BX
	MOVQ	entry+16(FP), CX
	SUBQ	$32, AX
	MOVQ	AX, SP
	MOVQ	BX, 0(SP)
	MOVQ	CX, 16(SP)
	CALL	·discard(SB)
	MOVQ	16(SP), CX
	LEAQ	32(SP), SP
	JMP	CX
